"""What one line of a corpus is: a labelled request (`Example`) or plain language (`TextLine`).

Both are immutable and know nothing of tokenizers or files. Slots keep the order of the utterance; a slot
name that occurs twice in one request has a tuple of values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

SlotValue = str | tuple[str, ...]

OUT_OF_SCOPE = "out_of_scope"


@dataclass(frozen=True)
class Example:
    """A request with the intent and slots that follow from its words."""

    text: str
    intent: str
    slots: tuple[tuple[str, SlotValue], ...] = ()

    def label_json(self) -> str:
        """Compact JSON, `{"intent":"navigate","slots":{"chain":"Flying J"}}`; no `slots` key without any."""
        return label_json(self.intent, self.slots)

    def line(self) -> str:
        """The text form of the corpus, one example per line."""
        return f"[USER] {self.text} [INTENT] {self.label_json()}"

    def as_record(self) -> dict[str, object]:
        """The JSONL form: `{"text", "intent", "slots": {name: value or list}}`."""
        slots = {name: value if isinstance(value, str) else list(value) for name, value in self.slots}
        return {"text": self.text, "intent": self.intent, "slots": slots}


@dataclass(frozen=True)
class TextLine:
    """One line of plain text, for language modelling."""

    text: str


def label_json(intent: str, slots: Iterable[tuple[str, SlotValue]]) -> str:
    """The label of a request as compact JSON, keys in the order given."""
    label: dict[str, object] = {"intent": intent}
    values = {name: value if isinstance(value, str) else list(value) for name, value in slots}
    if values:
        label["slots"] = values
    return json.dumps(label, ensure_ascii=False, separators=(",", ":"))


def merge_slots(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, SlotValue], ...]:
    """Slots in order of first occurrence; a repeated name collects its values in a tuple."""
    merged: dict[str, list[str]] = {}
    for name, value in pairs:
        merged.setdefault(name, []).append(value)
    return tuple((name, v[0] if len(v) == 1 else tuple(v)) for name, v in merged.items())
