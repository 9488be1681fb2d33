"""The same requests as a speech recogniser might hand them over: the corpus' own noise on any data.

Words that are no part of a value are misheard, lost, repeated or surrounded by others; the label stays as it
is. A value found in the text, word by word without regard to case, is left whole. Where a value is not said
literally ("i forty" for I-40), numbers and the words beside them stay as they are, since it is mostly numbers
that are written differently; other values said differently may be interrupted. No number ever is. Text comes
back in lower case, as every model here reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bithaul.corpus.example import Example
from bithaul.corpus.truckmate.dice import Dice
from bithaul.corpus.truckmate.grammar import Part
from bithaul.corpus.truckmate.noise import LEVELS, NUMBERS, add_noise
from bithaul.errors import UnknownName

_EDGES = ".,;:!?\"'()"


def noisy(examples: Sequence[Example], level: str, *, seed: int) -> list[Example]:
    """`examples` with the noise of one of `LEVELS`. Equal seeds give equal noise, request by request.

    The noise of a request depends on its place and its text alone. Raises `UnknownName`.
    """
    if level not in LEVELS:
        raise UnknownName(f"There is no noise level {level!r}; choose one of {', '.join(LEVELS)}.")
    found = []
    for i, example in enumerate(examples):
        dice = Dice(f"noise {level} {seed} {i} {example.text}")
        parts = add_noise(parts_of(example), dice, LEVELS[level])
        found.append(replace(example, text=" ".join(word for part in parts for word in part.words)))
    return found


def parts_of(example: Example) -> list[Part]:
    """The words of a request: values as parts with their slot, every other word as a part of its own."""
    words = example.text.lower().split()
    bare = [word.strip(_EDGES) for word in words]
    owner: list[tuple[int, str] | None] = [None] * len(words)
    values = [
        (slot, said)
        for slot, value in example.slots
        for said in ((value,) if isinstance(value, str) else value)
    ]
    literal = True
    for number, (slot, value) in enumerate(sorted(values, key=lambda pair: -len(pair[1].split()))):
        at = _find([word.strip(_EDGES) for word in value.lower().split()], bare, owner)
        literal = literal and at is not None
        if at is not None:
            owner[at : at + len(value.split())] = [(number, slot)] * len(value.split())
    return _joined(words, bare, owner, literal=literal)


def _find(value: Sequence[str], words: Sequence[str], owner: Sequence[object | None]) -> int | None:
    """Where `value` stands in words that belong to no other value yet."""
    size = len(value)
    for at in range(len(words) - size + 1):
        if list(words[at : at + size]) == list(value) and not any(owner[at : at + size]):
            return at
    return None


def _joined(
    words: Sequence[str], bare: Sequence[str], owner: Sequence[tuple[int, str] | None], *, literal: bool
) -> list[Part]:
    numeric = [word in NUMBERS or any(char.isdigit() for char in word) for word in bare]
    beside = 0 if literal else 1
    parts: list[Part] = []
    before: object = None
    for i, word in enumerate(words):
        mine = owner[i]
        near = mine is None and any(numeric[max(i - beside, 0) : i + beside + 1])
        whole = mine or ("number" if near else None)
        if whole is not None and whole == before:
            last = parts[-1]
            parts[-1] = replace(last, words=(*last.words, word), numeric=last.numeric or numeric[i])
        else:
            slot = mine[1] if mine else None
            parts.append(Part((word,), slot, kind="number" if near else "", numeric=numeric[i]))
        before = whole
    return parts


def word_error_rate(clean: Sequence[str], heard: Sequence[str]) -> float:
    """Words inserted, deleted or replaced, per word of the clean texts (Levenshtein distance on words)."""
    wrong = sum(_distance(a.lower().split(), b.lower().split()) for a, b in zip(clean, heard, strict=True))
    return wrong / max(sum(len(text.split()) for text in clean), 1)


def _distance(a: Sequence[str], b: Sequence[str]) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
