"""The labels a corpus knows: its intents, which slots each may have, and how values are really spelled.

Saved as `labels.json` next to `tokenizer.json`. Training is in lower case; `canonical` brings back the
spelling of the data ("Flying J"). It makes no statement about what a text means.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bithaul.corpus.example import Example
from bithaul.corpus.files import write_bytes
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import CorruptFile, NotFound

LARGEST_GAP = 2  # words a speaker may put inside a value: "cedar um city"
_NEW_SHARE = 0.01  # largest share of values outside all patterns, estimated by those seen once (Good-Turing)
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"[^\W\d]+|\d|[^\w\s]")


class LabelSet(BaseModel):
    """`intents` and `slots[intent]` in the data's spelling, sorted; `canonical` from normalised values.

    Values that are spelled as they are normalised are not listed in `canonical`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    intents: list[str]
    slots: dict[str, list[str]]
    canonical: dict[str, str]
    patterns: dict[str, list[str]] = {}
    """Slots whose values are known to be words of the request or to fit one of these normalised patterns, in
    which 0 stands for any digit. A slot that is not listed may hold anything."""

    @classmethod
    def from_examples(cls, examples: Iterable[Example], tokenizer: Tokenizer) -> LabelSet:
        """Collect labels; the most frequent spelling of a value wins, ties by spelling."""
        slots: dict[str, set[str]] = {}
        spellings: dict[str, Counter[str]] = {}
        folded: dict[str, str] = {}
        unsaid: dict[str, Counter[str]] = {}
        total: Counter[str] = Counter()
        for example in examples:
            words = _words(tokenizer.fold(example.text)) if example.slots else []
            names = slots.setdefault(example.intent, set())
            for name, value in example.slots:
                names.add(name)
                for part in (value,) if isinstance(value, str) else value:
                    key = folded.get(part)
                    if key is None:
                        key = folded[part] = tokenizer.fold(part)
                    spellings.setdefault(key, Counter())[part] += 1
                    total[name] += 1
                    patterns = unsaid.setdefault(name, Counter())
                    if not is_said(_words(key), words):
                        patterns[_DIGIT.sub("0", key)] += 1
        best = {key: min(found, key=lambda s: (-found[s], s)) for key, found in spellings.items()}
        return cls(
            intents=sorted(slots),
            slots={intent: sorted(slots[intent]) for intent in sorted(slots)},
            canonical={key: best[key] for key in sorted(best) if best[key] != key},
            patterns={
                name: sorted(unsaid[name])
                for name in sorted(total)
                if sum(count == 1 for count in unsaid[name].values()) <= _NEW_SHARE * total[name]
            },
        )

    def spell(self, normalised: str) -> str:
        """The data's spelling of a normalised value, or the value itself."""
        return self.canonical.get(normalised, normalised)

    def save(self, path: Path) -> None:
        write_bytes(path, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> LabelSet:
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"There are no labels at {path}; run `bithaul corpus tokenize` first.") from None
        except ValidationError as error:
            raise CorruptFile(f"{path} is not a label file: {error.errors()[0]['msg']}.") from None


def is_said(value: Sequence[str], request: Sequence[str]) -> bool:
    """Whether the words of `value` stand in `request` in order, at most `LARGEST_GAP` others between two."""
    at = {i for i, word in enumerate(request) if value and word == value[0]}
    for wanted in value[1:]:
        reach = {j for i in at for j in range(i + 1, min(i + 2 + LARGEST_GAP, len(request)))}
        at = {j for j in reach if request[j] == wanted}
    return bool(at)


def _words(folded: str) -> list[str]:
    return _WORD.findall(folded)
