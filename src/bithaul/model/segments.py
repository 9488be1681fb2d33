"""Where examples lie in a flat list of tokens, so that attention stays inside each example.

Everything but attention runs on tokens laid end to end, without padding. Attention needs a rectangle: tokens
are gathered to [examples, longest] and back. Padding is on the right, so the causal mask alone keeps real
queries away from it, and no other mask exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from bithaul.model.autograd import differentiable


@dataclass(frozen=True)
class Segments:
    """N tokens in `count` segments of at most `longest` tokens."""

    count: int
    longest: int
    positions: Tensor  # int64 [N], from 0 in each segment
    places: Tensor | None  # int64 [N], place of each token in the rectangle; None when it has no holes
    gather: Tensor | None  # int64 [count * longest], token of each place (any token for a hole)

    @classmethod
    def of_lengths(cls, lengths: Tensor) -> Segments:
        """Segments laid end to end; `lengths` int64 [count], all at least 1."""
        count, longest = int(lengths.shape[0]), int(lengths.max())
        total = int(lengths.sum())
        starts = lengths.cumsum(0) - lengths
        positions = torch.arange(total) - starts.repeat_interleave(lengths)
        if total == count * longest:
            return cls(count, longest, positions, None, None)
        rows = torch.arange(count).repeat_interleave(lengths)
        places = rows * longest + positions
        gather = torch.zeros(count * longest, dtype=torch.int64)
        gather[places] = torch.arange(total)
        return cls(count, longest, positions, places, gather)

    def spread(self, x: Tensor) -> Tensor:
        """[N, ...] to [count, longest, ...]."""
        if self.places is not None:
            x = differentiable(_Spread, x, self.gather, self.places)
        return x.reshape(self.count, self.longest, *x.shape[1:])

    def collect(self, x: Tensor) -> Tensor:
        """[count, longest, ...] back to [N, ...]."""
        x = x.reshape(self.count * self.longest, *x.shape[2:])
        return x if self.places is None else differentiable(_Collect, x, self.places)


class _Spread(Function):
    """Holes repeat some token; causality keeps them out of every result, so they have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, gather)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = x.shape[0]
        return x.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        spread = grad.new_zeros((ctx.size, *grad.shape[1:]))
        return spread.index_copy_(0, ctx.saved_tensors[0], grad), None
