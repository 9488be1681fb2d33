"""More variety from the same examples, made once, when a corpus folder is built.

Values change places between examples of the same slot, words fall apart into the parts that an unknown word
would have, and words are hidden behind `[UNK]`. Text and label change together, so a label still follows from
its words. It makes no new phrasings and no speech noise; the Truck Mate generator has both.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from bithaul.corpus.example import Example, SlotValue, TextLine
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import InvalidInput

Pools = Mapping[str, Sequence[str]]
Chance = float


class Augmentation(BaseModel):
    """How often each example is written, and what may happen to it each time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    copies: int = Field(default=1, ge=1, le=1000)  # times that every example is written
    swap: Chance = Field(default=0.0, ge=0, le=1)  # of a slot to get the value of another example
    spell: Chance = Field(default=0.0, ge=0, le=1)  # of a word to be written in parts
    drop: Chance = Field(default=0.0, ge=0, le=1)  # of a word to become [UNK]


AS_IT_IS = Augmentation()
_ENOUGH = 120_000  # examples after copying
_MOST_COPIES = 8


def suggested(examples: Sequence[Example | TextLine], *, generated: bool) -> Augmentation:
    """What a corpus of these training examples gains from (docs/lab/0007); plain text stays as it is.

    Few examples are written several times. Generated requests vary their values by themselves.
    """
    if not examples or not isinstance(examples[0], Example):
        return AS_IT_IS
    if generated:
        return Augmentation(spell=0.05, drop=0.02)
    return Augmentation(
        copies=min(_MOST_COPIES, max(1, _ENOUGH // len(examples))), swap=0.5, spell=0.1, drop=0.05
    )


def parse_augmentation(text: str) -> Augmentation:
    """`none`, or fields as in `copies=8,swap=0.5,spell=0.1,drop=0.05`; what is not named stays off."""
    if text.strip().lower() == "none":
        return AS_IT_IS
    try:
        pairs = dict(part.split("=") for part in text.split(","))
        return Augmentation.model_validate({name.strip(): value for name, value in pairs.items()})
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} is no augmentation; write none, or for example copies=8,swap=0.5,spell=0.1,drop=0.05."
        ) from error


def value_pools(examples: Sequence[Example], tokenizer: Tokenizer) -> dict[str, list[str]]:
    """Per slot, the different normalised values that stand in their request as they are, sorted."""
    found: dict[str, set[str]] = {}
    for example in examples:
        text = tokenizer.fold(example.text)
        for name, value in example.slots:
            if isinstance(value, str) and len(_places(tokenizer, value, text)) == 1:
                found.setdefault(name, set()).add(tokenizer.fold(value))
    return {name: sorted(values) for name, values in found.items()}


def swap_values(
    example: Example, pools: Pools, tokenizer: Tokenizer, chance: Chance, dice: random.Random
) -> Example:
    """The example with some values replaced, in text and label; normalised where anything changed.

    A value is only replaced where it stands in the text exactly once and touches no other value.
    """
    text = tokenizer.fold(example.text)
    said = [_places(tokenizer, value, text) for _, value in example.slots]
    new: dict[tuple[int, int], tuple[int, str]] = {}
    for number, (name, value) in enumerate(example.slots):
        if not isinstance(value, str) or name not in pools or len(said[number]) != 1:
            continue
        others = [span for i, spans in enumerate(said) if i != number for span in spans]
        start, stop = said[number][0]
        alone = all(stop <= other[0] or other[1] <= start for other in others)
        if alone and dice.random() < chance:
            new[start, stop] = number, dice.choice(pools[name])
    slots: list[tuple[str, SlotValue]] = list(example.slots)
    written, end = "", 0
    for (start, stop), (number, value) in sorted(new.items()):
        written += text[end:start] + value
        slots[number] = (slots[number][0], value)
        end = stop
    return Example(written + text[end:], example.intent, tuple(slots)) if new else example


def _places(tokenizer: Tokenizer, value: SlotValue, text: str) -> list[tuple[int, int]]:
    """Every place where the value, or a part of a list, stands in the normalised text as whole words."""
    parts = [tokenizer.fold(part) for part in ((value,) if isinstance(value, str) else value)]
    patterns = [rf"(?<!\w){re.escape(part)}(?!\w)" for part in parts if part]
    return [match.span() for pattern in patterns for match in re.finditer(pattern, text)]


class WordNoise:
    """Words written in parts, or hidden, in rows of ids; the same word alike everywhere in its row."""

    def __init__(self, tokenizer: Tokenizer, augmentation: Augmentation) -> None:
        self._spell, self._drop = augmentation.spell, augmentation.drop
        self._unknown = tokenizer.unk
        names = tokenizer.structure().ids()
        self._parts = {
            i: parts
            for i in range(tokenizer.vocab_size)
            if i not in names and (parts := tokenizer.spelled(i))
        }

    def apply(self, row: Sequence[int], dice: random.Random) -> list[int]:
        instead: dict[int, list[int]] = {}
        for token in dict.fromkeys(row):
            if token in self._parts:
                roll = dice.random()
                if roll < self._drop:
                    instead[token] = [self._unknown]
                elif roll < self._drop + self._spell:
                    instead[token] = self._parts[token]
        if not instead:
            return list(row)
        return [part for token in row for part in instead.get(token, (token,))]
