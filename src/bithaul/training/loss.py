"""Weighted cross-entropy with the tied head, in blocks of rows.

The fp32 logits of a whole batch never exist: a block's logits, its loss and its gradient are computed
together while they are in the cache. Where the step's backward takes inputs rounded to bf16, so do the head's
products, and the logits that gradients come from are bf16 too; those of an evaluation are fp32. The loss
reported is in nats per weighted token and never contains label smoothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from bithaul.model import kernels
from bithaul.model.autograd import array_of, differentiable
from bithaul.model.scratch import lasting, scratch

_BLOCK_VALUES = 1 << 20  # logits at a time: 4 MiB, but
_BLOCK_ROWS = 256  # no fewer rows: each block reads the whole embedding
_ROWS = 64  # rows of weight 0 are kept up to a multiple of this
_GROUP_VALUES = 1 << 24  # d_logits kept for one product with the inputs: 32 MiB in bf16, but
_GROUP_ROWS = 2048  # no fewer rows: each product adds to the whole gradient of the embedding
_ALIGNMENT = 32  # values: rows of logits begin at whole cache lines, odd ones cost a third of the speed


@dataclass(frozen=True)
class LossSums:
    """Sums over the targets of one or more batches."""

    weighted: float
    weight: float
    plain: float
    tokens: int

    @property
    def mean(self) -> float:
        """The training loss: `sum(w * ce) / sum(w)`."""
        return self.weighted / self.weight

    @property
    def plain_mean(self) -> float:
        """Every target counted once."""
        return self.plain / self.tokens

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.weighted + other.weighted,
            self.weight + other.weight,
            self.plain + other.plain,
            self.tokens + other.tokens,
        )


def _blocks(rows: int, size: int) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


class _HeadLoss(Function):
    """Mean weighted cross-entropy (with smoothing) as a 0-d tensor; gradients are computed in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        embedding: Tensor,
        targets: Tensor,
        weights: Tensor,
        total_weight: float,
        smoothing: float,
        dtype: torch.dtype,
        cross_entropy: Tensor,
    ) -> Tensor:
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        vocabulary = embedding.shape[0]
        width = -(-vocabulary // _ALIGNMENT) * _ALIGNMENT
        share = weights / total_weight
        table, rows = embedding.to(dtype), hidden.to(dtype)
        left, right = (rows, table) if needed else (hidden.detach(), embedding.detach())
        d_hidden = lasting(tuple(hidden.shape))
        d_embedding = lasting(tuple(embedding.shape)).zero_() if needed else None
        uniform = torch.empty_like(cross_entropy)
        for group in _blocks(hidden.shape[0], max(_GROUP_ROWS, _GROUP_VALUES // vocabulary)):
            d_logits = scratch("d_logits", (group.stop - group.start, width), dtype)
            d_logits[:, vocabulary:] = 0.0  # a product with AMX reads whole tiles: 0 times NaN would be NaN
            for inner in _blocks(d_logits.shape[0], max(_BLOCK_ROWS, _BLOCK_VALUES // vocabulary)):
                block = slice(group.start + inner.start, group.start + inner.stop)
                logits = d_logits[inner] if needed else scratch("logits", (block.stop - block.start, width))
                torch.mm(left[block], right.t(), out=logits[:, :vocabulary])
                kernels.cross_entropy(
                    array_of(logits),
                    vocabulary,
                    targets[block].numpy(),
                    share[block].numpy(),
                    np.float32(smoothing),
                    cross_entropy[block].numpy(),
                    uniform[block].numpy(),
                    array_of(d_logits[inner]),
                )
            if d_embedding is not None:
                d_hidden[group] = d_logits[:, :vocabulary] @ table
                d_embedding += d_logits[:, :vocabulary].t() @ rows[group]
        if d_embedding is not None:
            ctx.save_for_backward(d_hidden, d_embedding)
        loss = torch.lerp(cross_entropy, uniform, smoothing) if smoothing else cross_entropy
        return (loss * share).sum(dtype=torch.float64).to(torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_embedding = ctx.saved_tensors
        if float(grad) != 1.0:  # a whole embedding to read and write for nothing
            d_hidden, d_embedding = d_hidden * grad, d_embedding * grad
        return d_hidden, d_embedding, *([None] * 6)


def head_loss(
    hidden: Tensor,
    embedding: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    total_weight: float | None = None,
    smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, LossSums]:
    """The loss to differentiate (0-d) and the sums to report, for hidden [N, H] and embedding [V, H].

    The loss is `sum(w * ce) / total_weight` (None: `sum(w)`), so that parts of a batch add up. Rows of weight
    0 are left out, but for a few. `dtype` is that of the backward products; call it inside
    `products.step_precision`.
    """
    hidden, targets, weights = _worthwhile(hidden, targets, weights)
    cross_entropy = torch.empty(targets.shape)
    loss = differentiable(
        _HeadLoss,
        hidden,
        embedding,
        targets,
        weights,
        float(weights.sum(dtype=torch.float64)) if total_weight is None else total_weight,
        smoothing,
        dtype,
        cross_entropy,
    )
    exact = cross_entropy.double()
    return loss, LossSums(
        weighted=float((exact * weights).sum()),
        weight=float(weights.double().sum()),
        plain=float(exact[weights > 0].sum()),
        tokens=int((weights > 0).sum()),
    )


def _worthwhile(hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Without most rows of weight 0; some stay, so that the number of rows takes few values."""
    order = weights.eq(0).to(torch.int8).argsort(stable=True)
    counted = int((weights > 0).sum())
    kept = min(-(-counted // _ROWS) * _ROWS, len(order))
    if kept == len(order):
        return hidden, targets, weights
    chosen = order[:kept].sort().values
    return hidden[chosen], targets[chosen], weights[chosen]
