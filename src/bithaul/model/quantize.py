"""The two quantisers of BitNet b1.58: one scale per weight matrix, one scale per token.

This module is the definition. On every faster path weight codes and scales are the same bit for bit;
activation codes may differ by one unit in at most one of a thousand, where another order of adding the norm
decides a tie. Statistics are fp32, rounding is to the nearest even number, the epsilon is put on the
statistic (training-tips PDF of the b1.58 authors, figures 3 and 4). Nothing here is differentiable: the
straight-through gradient lives in `bitlinear`.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATISTIC_FLOOR = 1e-5
ACTIVATION_MAX = 127.0


@torch.no_grad()
def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`(T, g)` of a matrix: int8 codes in {-1, 0, 1} of the same shape and the scale, a 0-d float32.

    `g = max(mean|W|, 1e-5)`, `T = clip(round(W * (1/g)), -1, 1)`. The mean is summed in float64, row by row,
    so `g` does not depend on the number of threads. Never apply this to `g * T`: the mean would then run
    over the zeros and shrink the scale.
    """
    latent = weight.detach()
    total = latent.abs().sum(dim=-1, dtype=torch.float64).sum()
    scale = (total / latent.numel()).to(torch.float32).clamp_min(STATISTIC_FLOOR)
    codes = (latent * scale.reciprocal()).round_().clamp_(-1.0, 1.0).to(torch.int8)
    return codes, scale


@torch.no_grad()
def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """`(X, s)` of activations [..., K]: int8 codes and one float32 scale per row, shape [..., 1].

    `a = max(max_j |x_j|, 1e-5)`, `s = 127 / a`, `X = clip(round(x * s), -128, 127)`.
    """
    x = x.detach()
    scale = ACTIVATION_MAX / x.abs().amax(dim=-1, keepdim=True).clamp_min(STATISTIC_FLOOR)
    codes = (x * scale).round_().clamp_(-128.0, ACTIVATION_MAX).to(torch.int8)
    return codes, scale
