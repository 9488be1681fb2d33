"""Precision, recall and F1 from counts. Pure arithmetic, no idea of models or files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def ratio(part: float, whole: float) -> float:
    """`part / whole`, and 0 of nothing is 0."""
    return part / whole if whole else 0.0


def f1_score(hits: int, gold: int, found: int) -> float | None:
    """Harmonic mean of `hits / found` and `hits / gold`; None when there was nothing to find or to say."""
    return 2 * hits / (gold + found) if gold + found else None


class Counts:
    """Hits, gold and found items per name, over many requests."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.gold: Counter[str] = Counter()
        self.found: Counter[str] = Counter()

    def add(self, gold: Counter[T], found: Counter[T], *, key: Callable[[T], str] = str) -> None:
        """One request. An item is a hit as often as both sides hold it; `key` names what it counts for."""
        for target, items in ((self.gold, gold), (self.found, found), (self.hits, gold & found)):
            for item, count in items.items():
                target[key(item)] += count

    def names(self) -> list[str]:
        """All names seen on either side, sorted."""
        return sorted(self.gold.keys() | self.found.keys())

    def precision_recall_f1(self, name: str) -> tuple[float, float, float]:
        hits, gold, found = self.hits[name], self.gold[name], self.found[name]
        return ratio(hits, found), ratio(hits, gold), f1_score(hits, gold, found) or 0.0
