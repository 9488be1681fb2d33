"""A linear layer whose weights are {-1, 0, 1} in every forward pass, with fp32 latent weights behind.

    forward    y  = (X T^t) * g / s      X int8 [M, K], T int8 [N, K], the sums are integers
    backward   dx = dy W_q               W_q = g * T
               dW = dy^t x_q             x_q = X / s

The gradient passes both quantisers unchanged (straight-through); `g` and `s` get none. Because |X| <= 128 and
|T| <= 1, every order of adding gives the same fp32 sum for K up to 131,072: the forward pass is bit-identical
on all paths and thread counts. `BitLinear` is the layer, `fake_quantized_linear` the definition that autograd
differentiates, `integer_linear` the exact reference; `fused` computes the same with less memory traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bithaul.model import kernels
from bithaul.model.products import EXACT_FP32, StepPath, integer_product
from bithaul.model.quantize import STATISTIC_FLOOR, quantize_activation, quantize_weight


def fake_quantized_linear(x: Tensor, weight: Tensor) -> Tensor:
    """The definition in plain fp32: both operands rounded and scaled back, gradient straight through."""
    codes, scale = quantize_activation(x)
    x_q = x + (codes.float() / scale - x).detach()
    ternary, gain = quantize_weight(weight)
    w_q = weight + (ternary.float() * gain - weight).detach()
    return F.linear(x_q, w_q)


def integer_linear(x: Tensor, weight: Tensor) -> Tensor:
    """The exact reference: int64 sums, then one multiplication by `(1/s) * g`, the order all paths keep."""
    codes, scale = quantize_activation(x)
    ternary, gain = quantize_weight(weight)
    sums = integer_product(codes.reshape(-1, codes.shape[-1]), ternary)
    return sums.float().reshape(*x.shape[:-1], -1) * (scale.reciprocal() * gain)


@dataclass(frozen=True)
class TernaryCodes:
    """Codes of one matrix or of several stacked along the outputs, as they were at `versions`."""

    versions: tuple[tuple[int, int], ...]
    path: StepPath
    codes: Tensor  # int8 [sum of N, K]
    operand: Tensor  # the codes as the forward kernel of `path` wants them
    words: Tensor | None  # as 16-bit products on the way back want them, where `path` has such
    scales: tuple[np.float32, ...]  # g of each matrix
    widths: tuple[int, ...]  # N of each matrix


class CodeCache:
    """Quantises matrices that share an input once per optimizer step.

    The key is where each parameter lies in memory and its version counter. Writing weights through `.data`,
    or with an operation that does not advance the counter (the fused optimizers), leaves stale codes: such a
    writer calls `torch.autograd.graph.increment_version`.
    """

    def __init__(self, *weights: nn.Parameter) -> None:
        self.weights = weights
        self._current: TernaryCodes | None = None

    def codes(self, path: StepPath) -> TernaryCodes:
        versions = tuple((weight.data_ptr(), weight._version) for weight in self.weights)
        current = self._current
        if current is None or current.versions != versions or current.path is not path:
            widths = tuple(weight.shape[0] for weight in self.weights)
            codes = torch.empty((sum(widths), self.weights[0].shape[1]), dtype=torch.int8)
            scales = tuple(
                _quantize_into(weight, part)
                for weight, part in zip(self.weights, torch.split(codes, list(widths)), strict=True)
            )
            operand, words = path.kernel.prepare(codes), path.prepare_backward(codes)
            current = TernaryCodes(versions, path, codes, operand, words, scales, widths)
            self._current = current
        return current


def _quantize_into(weight: Tensor, codes: Tensor) -> np.float32:
    """`quantize_weight` in two passes over the latent matrix: fills `codes`, returns g."""
    latent = weight.detach().numpy().reshape(-1)
    mean = np.float32(kernels.absolute_sum(latent) / latent.size)
    scale = max(mean, np.float32(STATISTIC_FLOOR))
    kernels.ternary_codes(latent, np.float32(1.0) / scale, codes.numpy().reshape(-1))
    return scale


class BitLinear(nn.Module):
    """`y = x W^t` without bias, ternary in the forward pass; `ternary=False` makes it plain linear."""

    def __init__(self, inputs: int, outputs: int, *, ternary: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.ternary = ternary

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantized_linear(x, self.weight) if self.ternary else F.linear(x, self.weight)

    @torch.no_grad()
    def infer(self, x: Tensor, *, path: StepPath = EXACT_FP32) -> Tensor:
        """The forward pass on an exact integer path, without gradients; equal to `integer_linear`."""
        codes, scale = quantize_activation(x)
        ternary, gain = quantize_weight(self.weight)
        sums = path.product(codes.reshape(-1, codes.shape[-1]), ternary)
        return sums.reshape(*x.shape[:-1], -1) * (scale.reciprocal() * gain)
