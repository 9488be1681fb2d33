"""Ternary linear layers on the device of their parameters, several with one input at a time.

    forward    y_i = (X T_i^t) * ((1 / s) * g_i)      integers times one fp32 factor, as on every path
    backward   d_i = dy_i * ((1 / s) * g_i)           rounded to the path's type, the only rounding
               dx  = (sum_i d_i T_i) * s              dW_i = (d_i^t X) / g_i

The quantisers are those of `quantize`. Codes of the weights are made once per optimizer step; activations are
kept for the way back as int8. Nothing here knows CUDA: the tests run it on the CPU against the definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from bithaul.model.device import DevicePath, multiply
from bithaul.model.quantize import quantize_activation, quantize_weight


@dataclass(frozen=True)
class DeviceCodes:
    """Codes of matrices stacked along the outputs, as they were at `versions`."""

    versions: tuple[tuple[int, int], ...]
    codes: Tensor  # int8 [sum of N, K]
    scales: tuple[Tensor, ...]  # g of each matrix, 0-d
    widths: list[int]  # N of each matrix


class DeviceCodeCache:
    """Quantises matrices that share an input once per optimizer step; the key is that of `CodeCache`."""

    def __init__(self) -> None:
        self._current: DeviceCodes | None = None

    def codes(self, weights: tuple[Tensor, ...]) -> DeviceCodes:
        versions = tuple((weight.data_ptr(), weight._version) for weight in weights)
        if self._current is None or self._current.versions != versions:
            codes, scales = zip(*map(quantize_weight, weights), strict=True)
            widths = [weight.shape[0] for weight in weights]
            self._current = DeviceCodes(versions, torch.cat(codes), scales, widths)
        return self._current


def device_linear(
    x: Tensor, weights: tuple[Tensor, ...], *, path: DevicePath, ternary: DeviceCodes
) -> tuple[Tensor, ...]:
    """x [M, K] through each of the matrices [N, K], all of them one product: a tuple of [M, N]."""
    outputs = _Linear.apply(x, path, ternary, *weights)  # type: ignore[no-untyped-call]  # untyped in torch
    return cast(tuple[Tensor, ...], outputs)


class _Linear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, path: DevicePath, ternary: DeviceCodes, *_weights: Tensor
    ) -> tuple[Tensor, ...]:
        codes, scale = quantize_activation(x)
        inverse = scale.reciprocal()
        sums = torch.split(path.product(codes, ternary.codes), ternary.widths, dim=1)
        ctx.ternary, ctx.dtype = ternary, path.gradient_dtype
        ctx.save_for_backward(codes, scale, inverse)
        return tuple(part * (inverse * g) for part, g in zip(sums, ternary.scales, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale, inverse = ctx.saved_tensors
        ternary: DeviceCodes = ctx.ternary
        dtype: torch.dtype = ctx.dtype
        scaled = torch.empty((len(codes), len(ternary.codes)), dtype=dtype, device=codes.device)
        parts = torch.split(scaled, ternary.widths, dim=1)
        for part, gradient, g in zip(parts, gradients, ternary.scales, strict=True):
            part.copy_(gradient * (inverse * g))
        dx = multiply(scaled, ternary.codes.to(dtype)).mul_(scale)
        product = torch.split(multiply(scaled.t(), codes.to(dtype)), ternary.widths)
        d_weights = (part * g.reciprocal() for part, g in zip(product, ternary.scales, strict=True))
        return dx, None, None, *d_weights
