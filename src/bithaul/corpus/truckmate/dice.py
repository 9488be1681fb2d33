"""Seeded choices for the generator: the only source of chance in it, equal on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar
from zlib import crc32

T = TypeVar("T")


class Dice:
    """A seeded stream of choices; two dice of one seed fall alike, whatever PYTHONHASHSEED is."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - data, not cryptography

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._random.random() * len(items))]

    def usual(self, items: Sequence[T]) -> T:
        """The first item half of the time, any of the others otherwise."""
        return items[0] if len(items) == 1 or self._random.random() < 0.5 else self.pick(items[1:])

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self._random.random() * (high - low + 1))


def reserved(key: str, one_in: int) -> bool:
    """A fixed property of a key: one key in `one_in` is kept out of training."""
    return crc32(key.encode()) % one_in == 0
