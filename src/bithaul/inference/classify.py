"""Understand requests: text in, intent with confidence and slots out, as valid JSON whatever was said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bithaul.inference.decode import DecodedLabel, decode_labels, longest_request
from bithaul.inference.loader import LoadedModel
from bithaul.inference.reading import Reading
from bithaul.inference.spelling import Request, SlotText, spell_slots

OUT_OF_SCOPE_NAMES = ("out_of_scope", "oos", "out-of-scope", "outofscope")
# JSON allows these inside strings, but programs that split text into lines break at some of them.
_LINE_BREAKERS = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")


@dataclass(frozen=True)
class Parse:
    """What a request means. `cut` says that only its beginning fitted into the model's context.

    `reading` is how sure the model is of every intent, where that was asked for.
    """

    text: str
    intent: str
    confidence: float
    slots: Mapping[str, SlotText]
    cut: bool = False
    reading: Reading | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> str:
        """One line: `{"text": ..., "intent": ..., "confidence": ..., "slots": {...}}`."""
        record = {
            "text": self.text,
            "intent": self.intent,
            "confidence": self.confidence,
            "slots": dict(self.slots),
        }
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        return _LINE_BREAKERS.sub(lambda match: f"\\u{ord(match.group()):04x}", line)


def classify(model: LoadedModel, texts: Sequence[str], *, readings: bool = False) -> list[Parse]:
    """The meaning of each text, in order, and with `readings` the model's view of every intent.

    A request longer than `longest_request` pieces is understood by its beginning. A request without any word
    is out of scope where the model knows such an intent. Raises `InvalidInput` for a model without intents.
    """
    longest = longest_request(model.config)
    requests = [Request.of(encodable(text), model.tokenizer, longest=longest) for text in texts]
    labels = decode_labels(model, [request.ids for request in requests], readings=readings)
    return [_parse(model, request, label) for request, label in zip(requests, labels, strict=True)]


def encodable(text: str) -> str:
    """`text` with each lone surrogate (bytes that were no UTF-8) as a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def out_of_scope_intent(intents: Sequence[str]) -> str | None:
    """The model's intent for requests that are none of its business, under one of its usual names."""
    return next((intent for name in OUT_OF_SCOPE_NAMES for intent in intents if intent.lower() == name), None)


def _parse(model: LoadedModel, request: Request, label: DecodedLabel) -> Parse:
    nothing_said = out_of_scope_intent(model.labels.intents) if not request.pieces else None
    if nothing_said is not None:
        return Parse(request.text, nothing_said, 1.0, {}, reading=label.reading)
    slots = spell_slots(request, label.slots, model)
    return Parse(request.text, label.intent, label.confidence, slots, cut=request.cut, reading=label.reading)
