"""The labels a corpus knows: its intents, which slots each may have, and how values are really spelled.

Saved as `labels.json` next to `tokenizer.json`. Training is in lower case; `canonical` brings back the
spelling of the data ("Flying J"). It makes no statement about what a text means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bithaul.corpus.example import Example
from bithaul.corpus.files import write_bytes
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import CorruptFile, NotFound


class LabelSet(BaseModel):
    """`intents` and `slots[intent]` in the data's spelling, sorted; `canonical` from normalised values.

    Values that are spelled as they are normalised are not listed in `canonical`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    intents: list[str]
    slots: dict[str, list[str]]
    canonical: dict[str, str]
    copied: list[str] = []  # slots whose values are words of their request, in 99 % of the data

    @classmethod
    def from_examples(cls, examples: Iterable[Example], tokenizer: Tokenizer) -> LabelSet:
        """Collect labels; the most frequent spelling of a value wins, ties by spelling."""
        slots: dict[str, set[str]] = {}
        spellings: dict[str, Counter[str]] = {}
        folded: dict[str, str] = {}
        said: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for example in examples:
            text = f" {tokenizer.fold(example.text)} " if example.slots else ""
            names = slots.setdefault(example.intent, set())
            for name, value in example.slots:
                names.add(name)
                for part in (value,) if isinstance(value, str) else value:
                    key = folded.get(part)
                    if key is None:
                        key = folded[part] = tokenizer.fold(part)
                    spellings.setdefault(key, Counter())[part] += 1
                    total[name] += 1
                    said[name] += f" {key} " in text
        best = {key: min(found, key=lambda s: (-found[s], s)) for key, found in spellings.items()}
        return cls(
            intents=sorted(slots),
            slots={intent: sorted(slots[intent]) for intent in sorted(slots)},
            canonical={key: best[key] for key in sorted(best) if best[key] != key},
            copied=sorted(name for name in total if said[name] >= 0.99 * total[name]),
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
