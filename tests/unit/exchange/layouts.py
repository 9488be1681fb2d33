"""Layouts of a few tensors, as codecs and deltas take them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    offset: int
    size: int


@dataclass(frozen=True)
class Tensors:
    tensors: tuple[Place, ...]

    @property
    def size(self) -> int:
        return sum(t.size for t in self.tensors)


def tensors(*sizes: int) -> Tensors:
    """One after another, of these sizes."""
    return Tensors(tuple(Place(sum(sizes[:i]), size) for i, size in enumerate(sizes)))
