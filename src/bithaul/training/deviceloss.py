"""Weighted cross-entropy with the tied head on the device of the hidden states, in blocks of rows.

The same function as `loss.head_loss`, from torch operations alone. A block's logits, its loss and its
gradient are made together, so the logits of a whole batch never exist, and neither do their gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from bithaul.model.autograd import differentiable
from bithaul.model.device import multiply
from bithaul.training.loss import LossSums

_BLOCK_VALUES = 1 << 24  # logits at a time: 64 MiB


def device_head_loss(
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

    Products take inputs rounded to `dtype` and add in fp32. See `loss.head_loss` for the arguments.
    """
    cross_entropy = torch.empty(targets.shape, device=hidden.device)
    total = float(weights.sum(dtype=torch.float64)) if total_weight is None else total_weight
    loss = differentiable(
        _DeviceHeadLoss, hidden, embedding, targets, weights / total, smoothing, dtype, cross_entropy
    )
    exact, counted = cross_entropy.double(), weights > 0
    plain = exact.where(counted, 0.0).sum()
    sums = torch.stack([(exact * weights).sum(), weights.double().sum(), plain, counted.sum()])
    weighted, weight, unweighted, tokens = sums.tolist()  # the device is waited for once
    return loss, LossSums(weighted, weight, unweighted, int(tokens))


class _DeviceHeadLoss(Function):
    """`sum(share * ce)` (with smoothing) as a 0-d tensor; gradients are computed in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        embedding: Tensor,
        targets: Tensor,
        share: Tensor,
        smoothing: float,
        dtype: torch.dtype,
        cross_entropy: Tensor,
    ) -> Tensor:
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        table, rows = embedding.to(dtype), hidden.to(dtype)
        d_hidden, d_embedding = torch.empty_like(hidden), torch.zeros_like(embedding)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        size = max(1, _BLOCK_VALUES // len(table))
        for start in range(0, len(rows), size):
            block = slice(start, start + size)
            log_p = torch.log_softmax(multiply(rows[block], table.t()), dim=1)
            wanted = targets[block, None]
            cross_entropy[block] = log_p.gather(1, wanted).squeeze(1).neg_()
            loss = cross_entropy[block]
            if smoothing:
                loss = torch.lerp(loss, log_p.mean(dim=1).neg_(), smoothing)
            total += (loss * share[block]).sum(dtype=torch.float64)
            if needed:
                slope = log_p.exp_().sub_(smoothing / len(table))
                slope.scatter_add_(1, wanted, slope.new_full(wanted.shape, smoothing - 1.0))
                slope = slope.mul_(share[block, None]).to(dtype)
                d_hidden[block] = multiply(slope, table)
                d_embedding += multiply(slope.t(), rows[block])
        if needed:
            ctx.save_for_backward(d_hidden, d_embedding)
        return total.to(torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_embedding = ctx.saved_tensors
        return d_hidden * grad, d_embedding * grad, *([None] * 5)
