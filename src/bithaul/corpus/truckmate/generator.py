"""Truck Mate requests with labels that follow from their words, in two splits apart by construction.

Training never uses a held-out frame, a held-out value, or a reserved pair of values. A held-out request has
one of the three at least: a frame, a value or a pair of values that training cannot contain. One seed gives
the same bytes on every machine. No claim is made that people really talk like this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from bithaul.corpus.example import Example, merge_slots
from bithaul.corpus.spoken import are_said, readings
from bithaul.corpus.truckmate.dice import Dice, reserved
from bithaul.corpus.truckmate.frames import WEIGHTS, frames_of
from bithaul.corpus.truckmate.grammar import Part, Shape, fill, shape
from bithaul.corpus.truckmate.noise import add_noise, punctuate
from bithaul.corpus.truckmate.talk import around
from bithaul.corpus.truckmate.values import is_city
from bithaul.errors import InvalidInput

GENERATOR_VERSION = "7"
RESERVED_PAIRS = 10  # one pair of values in so many never meets in training
DIALOGUE_SHARE = 0.07
ATTEMPTS = 8  # draws before a repeated line is let through
FILLINGS = 40  # draws of values before a shape is given up for a split

Split = Literal["train", "heldout"]
Reason = Literal["train", "frame", "value", "pair"]


@dataclass(frozen=True)
class Traced:
    """An example and where it comes from: its frame, its values by kind, and why it is held out."""

    example: Example
    frame: str
    values: tuple[str, ...]
    pairs: tuple[str, ...]
    reason: Reason


def _keys(parts: Sequence[Part]) -> tuple[str, ...]:
    return tuple(f"{part.slot}={part.value}" for part in parts if part.slot and _kept(part))


def _pairs(keys: Sequence[str]) -> tuple[str, ...]:
    ordered = sorted(keys)
    return tuple(f"{a} & {b}" for i, a in enumerate(ordered) for b in ordered[i + 1 :])


def trace(*, count: int, seed: int, split: Split) -> Iterator[Traced]:
    """Like `generate`, with where each example comes from."""
    if count < 0:
        raise InvalidInput(f"The number of examples must not be negative, not {count}.")
    dice = Dice(f"truckmate {GENERATOR_VERSION} {split} {seed}")
    wheel = [intent for intent, weight in WEIGHTS.items() for _ in range(weight)]
    seen: set[str] = set()
    for _ in range(count):
        for attempt in range(ATTEMPTS):
            found = _draw(dice.pick(wheel), dice, split)
            line = found.example.line()
            if line not in seen or attempt == ATTEMPTS - 1:
                seen.add(line)
                yield found
                break


def generate(*, count: int, seed: int, split: Split) -> Iterator[Example]:
    """`count` examples of a split, equal for equal seeds."""
    return (found.example for found in trace(count=count, seed=seed, split=split))


def _draw(intent: str, dice: Dice, split: Split) -> Traced:
    reason: Reason = "train"
    if split == "heldout":
        reason = dice.pick(("frame", "value", "pair")) if intent != "out_of_scope" else "frame"
    for attempt in range(200):
        if split == "heldout" and attempt == 100:
            reason = "frame"  # an intent without such values or pairs
        dialogue = dice.chance(DIALOGUE_SHARE) and bool(frames_of(intent, dialogue=True, held=False))
        frame = dice.pick(frames_of(intent, dialogue=dialogue, held=reason == "frame"))
        if reason in ("value", "pair") and not frame.has_values:
            continue
        parts = _filled(shape(frame.phrase, dice), dice, reason)
        if parts is not None:
            noisy = add_noise(around([_forget(part) for part in parts], dice), dice)
            slots = merge_slots((p.slot, p.value) for p in noisy if p.slot)
            example = Example(punctuate(noisy, dice), intent, slots)
            keys = _keys(parts)
            return Traced(example, frame.text, keys, _pairs(keys), reason)
    raise AssertionError(f"no {reason} example of {intent} after 200 draws")


def _filled(items: Shape, dice: Dice, reason: Reason) -> list[Part] | None:
    """The shape with values that may be used for `reason`, or None when none were found.

    Values are drawn again, not shapes: otherwise requests of many values, which have more pairs, would be
    rare in training and frequent in what is held out.
    """
    for _ in range(FILLINGS):
        parts = fill(items, dice, held=reason == "value")
        if _fits(parts, reason) and not _runs_together(parts):
            return parts
    return None


def _fits(parts: Sequence[Part], reason: Reason) -> bool:
    """Whether these parts may be used for `reason`."""
    if reason == "frame":
        return True
    if reason == "value":
        return any(part.held and _kept(part) for part in parts)
    has_pair = any(reserved(pair, RESERVED_PAIRS) for pair in _pairs(_keys(parts)))
    return has_pair == (reason == "pair")


def _runs_together(parts: Sequence[Part]) -> bool:
    """Whether two values with no word between can be heard as others: "austin bay bend", or "thirty two hours
    from now" behind an interstate."""
    return any(
        _heard_as_others(first.words + second.words, len(first.words))
        if is_city(first.words) and is_city(second.words)
        else first.numeric and second.numeric and _heard_as_one_number(first, second)
        for first, second in pairwise(parts)
        if first.slot and second.slot
    )


def _heard_as_one_number(first: Part, second: Part) -> bool:
    said = readings(" ".join(first.words + second.words))
    return not (are_said(first.value, said) and are_said(second.value, said))


def _heard_as_others(words: tuple[str, ...], border: int) -> bool:
    longer = any(is_city(words[:end]) for end in range(border + 1, len(words) + 1))
    return longer or any(is_city(words[:end]) and is_city(words[end:]) for end in range(1, border))


def _kept(part: Part) -> bool:
    """False for a value that is said and replaced later (`_x`)."""
    return part.slot is None or not part.slot.startswith("_")


def _forget(part: Part) -> Part:
    if _kept(part):
        return part
    return Part(part.words, None, "", part.kind, part.numeric)
