"""Where examples lie in a flat list of tokens, so that attention stays inside each example.

Everything but attention runs on tokens laid end to end, without padding. Attention needs rectangles: token i
is entry `positions[i]` of segment `rows[i]`, and neighbouring segments form one or two groups, each as wide
as its longest. Padding is on the right, so the causal mask alone keeps real queries away from it, and no
other mask exists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """`count` neighbouring segments from `first` on, of at most `longest` tokens."""

    first: int
    count: int
    longest: int


@dataclass(frozen=True)
class Segments:
    """N tokens in `count` segments of at most `longest` tokens."""

    count: int
    longest: int
    rows: Tensor  # int64 [N], the segment of each token
    positions: Tensor  # int64 [N], from 0 in each segment
    groups: tuple[Group, ...]

    @classmethod
    def of_lengths(cls, lengths: Tensor) -> Segments:
        """Segments laid end to end; `lengths` int64 [count], all at least 1. Sorted ones waste least."""
        count, longest = int(lengths.shape[0]), int(lengths.max())
        starts = lengths.cumsum(0) - lengths
        positions = torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
        rows = torch.arange(count).repeat_interleave(lengths)
        return cls(count, longest, rows, positions, _grouped(lengths))

    def to(self, device: torch.device) -> Segments:
        """The same, with the tensors on `device`."""
        return replace(self, rows=self.rows.to(device), positions=self.positions.to(device))

    def spread(self, x: Tensor) -> Tensor:
        """[N, ...] to [count, longest, ...], zero where there is no token."""
        empty = x.new_zeros((self.count, self.longest, *x.shape[1:]))
        return empty.index_put((self.rows, self.positions), x)

    def collect(self, x: Tensor) -> Tensor:
        """[count, longest, ...] back to [N, ...]."""
        return x[self.rows, self.positions]


def _grouped(lengths: Tensor) -> tuple[Group, ...]:
    """One group, or two where cutting there saves most attention scores (the squares of the widths)."""
    count = int(lengths.shape[0])
    before, after = lengths.cummax(0).values, lengths.flip(0).cummax(0).values.flip(0)
    left = torch.arange(1, count)
    scores = left * before[:-1] ** 2 + (count - left) * after[1:] ** 2
    whole = count * int(before[-1]) ** 2
    if count == 1 or int(scores.min()) >= whole:
        return (Group(0, count, int(before[-1])),)
    cut = int(scores.argmin()) + 1
    return (Group(0, cut, int(before[cut - 1])), Group(cut, count - cut, int(after[cut])))
