"""Weighted cross-entropy with the tied head, in blocks of rows.

The fp32 logits of a whole batch never exist: a block's logits, its loss and its gradient are computed
together while they are in the cache. Head products take inputs rounded to bf16 where the step's backward
does, with fp32 sums. The loss reported is in nats per weighted token and never contains label smoothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

from bithaul.model.autograd import differentiable
from bithaul.model.products import matmul_precision

_BLOCK_ROWS = 64
_GROUP_VALUES = 1 << 24  # d_logits kept for one product with the inputs: 32 MiB in bf16


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
    step = max(1, size)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class _HeadLoss(Function):
    """Mean weighted cross-entropy (with smoothing) as a 0-d tensor; gradients are computed in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        embedding: Tensor,
        targets: Tensor,
        weights: Tensor,
        smoothing: float,
        dtype: torch.dtype,
        cross_entropy: Tensor,
    ) -> Tensor:
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        vocabulary = embedding.shape[0]
        share = weights / weights.sum()
        precision = "bf16" if dtype == torch.bfloat16 else "ieee"
        table, rows = embedding.to(dtype), hidden.to(dtype)
        d_hidden = torch.empty_like(hidden)
        d_embedding = torch.zeros_like(embedding) if needed else None
        total = torch.zeros((), dtype=torch.float64)
        for group in _blocks(hidden.shape[0], _GROUP_VALUES // vocabulary):
            d_logits = torch.empty((group.stop - group.start, vocabulary), dtype=dtype)
            for inner in _blocks(d_logits.shape[0], _BLOCK_ROWS):
                block = slice(group.start + inner.start, group.start + inner.stop)
                wanted = targets[block, None]
                with matmul_precision(precision):
                    log_p = F.log_softmax(hidden[block] @ embedding.t(), dim=-1)
                picked = log_p.gather(1, wanted).squeeze(1).neg_()
                cross_entropy[block] = picked
                loss = picked
                if smoothing:
                    loss = (1 - smoothing) * picked - smoothing / vocabulary * log_p.sum(dim=-1)
                total += (loss * share[block]).sum(dtype=torch.float64)
                if not needed:
                    continue
                p = log_p.exp_()
                if smoothing:
                    p.sub_(smoothing / vocabulary)
                p.scatter_add_(1, wanted, torch.full(wanted.shape, smoothing - 1.0))
                d_logits[inner] = p.mul_(share[block, None])
            if d_embedding is not None:
                d_hidden[group] = d_logits @ table
                d_embedding += d_logits.t() @ rows[group]
        if d_embedding is not None:
            ctx.save_for_backward(d_hidden, d_embedding)
        return total.to(torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_embedding = ctx.saved_tensors
        return d_hidden * grad, d_embedding * grad, None, None, None, None, None


def head_loss(
    hidden: Tensor,
    embedding: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, LossSums]:
    """The loss to differentiate (0-d) and the sums to report, for hidden [N, H] and embedding [V, H].

    Rows of weight 0 are left out, but for a few. `dtype` is that of the backward products.
    """
    hidden, targets, weights = _worthwhile(hidden, targets, weights)
    cross_entropy = torch.empty(targets.shape)
    loss = differentiable(_HeadLoss, hidden, embedding, targets, weights, smoothing, dtype, cross_entropy)
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
    kept = min(-(-counted // _BLOCK_ROWS) * _BLOCK_ROWS, len(order))
    if kept == len(order):
        return hidden, targets, weights
    chosen = order[:kept].sort().values
    return hidden[chosen], targets[chosen], weights[chosen]
