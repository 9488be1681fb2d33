"""Truck Mate requests with labels that follow from their words, in two splits apart by construction.

Training never uses a held-out frame, a held-out value, or a reserved pair of values. A held-out request has
one of the three at least: a frame, a value or a pair of values that training cannot contain. One seed gives
the same bytes on every machine. No claim is made that people really talk like this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bithaul.corpus.example import Example, merge_slots
from bithaul.corpus.truckmate.dice import Dice, reserved
from bithaul.corpus.truckmate.frames import WEIGHTS, frames_of
from bithaul.corpus.truckmate.grammar import Part, draw
from bithaul.corpus.truckmate.noise import add_noise, punctuate
from bithaul.corpus.truckmate.talk import around
from bithaul.errors import InvalidInput

GENERATOR_VERSION = "5"
RESERVED_PAIRS = 10  # one pair of values in so many never meets in training
DIALOGUE_SHARE = 0.07
ATTEMPTS = 8  # draws before a repeated line is let through

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
        parts = draw(frame.phrase, dice, held=reason == "value")
        found = _judge(parts, reason)
        if found is not None:
            noisy = add_noise(around([_forget(part) for part in parts], dice), dice)
            slots = merge_slots((p.slot, p.value) for p in noisy if p.slot)
            example = Example(punctuate(noisy, dice), intent, slots)
            keys = _keys(parts)
            return Traced(example, frame.text, keys, _pairs(keys), reason)
    raise AssertionError(f"no {reason} example of {intent} after 200 draws")


def _judge(parts: Sequence[Part], reason: Reason) -> Reason | None:
    """`reason` when these parts may be used for it, else None."""
    keys = _keys(parts)
    has_pair = any(reserved(pair, RESERVED_PAIRS) for pair in _pairs(keys))
    if reason == "train":
        return None if has_pair else reason
    if reason == "pair":
        return reason if has_pair else None
    if reason == "value":
        return reason if any(part.held and _kept(part) for part in parts) else None
    return reason


def _kept(part: Part) -> bool:
    """False for a value that is said and replaced later (`_x`)."""
    return part.slot is None or not part.slot.startswith("_")


def _forget(part: Part) -> Part:
    if _kept(part):
        return part
    return Part(part.words, None, "", part.kind, part.numeric)
