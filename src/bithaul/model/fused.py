"""The fast pieces of a block: norm + quantise + stacked ternary product, the gate, and rotary positions.

Each function computes in forward exactly what its plain counterpart does (equal codes, equal sums) and has a
hand-written backward that tests hold against autograd through the definition. Work on long arrays goes
through in blocks of rows that stay in a core's cache; rows are independent, so results do not depend on the
block size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

from bithaul.model.autograd import differentiable
from bithaul.model.bitlinear import TernaryCodes
from bithaul.model.products import PRODUCT_ROWS, StepPath
from bithaul.model.quantize import ACTIVATION_MAX, STATISTIC_FLOOR

_BLOCK_VALUES = 1 << 16  # 256 KiB of fp32 per operand: several operands fit in a 2 MiB cache


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension: `x / sqrt(mean(x^2) + eps) * gain`, in fp32."""
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps) * gain


def _row_blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK_VALUES // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class _NormLinear(Function):
    """RMSNorm, one quantisation, one product with stacked ternary matrices. Saves X as int8."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        eps: float,
        path: StepPath,
        ternary: TernaryCodes,
        *_weights: Tensor,
    ) -> Tensor:
        rows, width = x.shape
        codes = torch.empty((rows, width), dtype=torch.int8)
        rstd, inverse = torch.empty((rows, 1)), torch.empty((rows, 1))
        for block in _row_blocks(rows, width):
            part = x[block]
            square = part * part
            r = torch.rsqrt(square.mean(dim=-1, keepdim=True) + eps)
            normed = torch.mul(part, r, out=square).mul_(gain)
            scale = ACTIVATION_MAX / normed.abs().amax(dim=-1, keepdim=True).clamp_min_(STATISTIC_FLOOR)
            codes[block] = normed.mul_(scale).round_()  # |x * s| <= 127 by construction: no clip needed
            rstd[block] = r
            inverse[block] = scale.reciprocal()
        factors = torch.cat([inverse * g for g in ternary.scales], dim=1)
        y = torch.empty((rows, ternary.codes.shape[0]))
        for start in range(0, rows, PRODUCT_ROWS):
            block = slice(start, start + PRODUCT_ROWS)
            sums = ternary.kernel.multiply(codes[block], ternary.operand)
            _scale_columns(sums.float(), factors[block], ternary, out=y[block])
        ctx.path, ctx.ternary = path, ternary
        ctx.save_for_backward(x, gain, rstd, inverse, factors, codes)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """With f = g / s: one scaled copy of dy serves both products, dW = (f dy)^t X / g, dn = (f dy) T * s.

        The row factor s then joins those of the norm: with p = (f dy) T and r = 1 / rms(x),
        dx = r (s p gain - x r^2 s mean(p gain x)).
        """
        x, gain, rstd, inverse, factors, codes = ctx.saved_tensors
        ternary: TernaryCodes = ctx.ternary
        dtype = ctx.path.gradient_dtype
        rows, width = x.shape
        scaled = torch.empty(dy.shape, dtype=dtype)
        for block in _row_blocks(*dy.shape):
            part = dy[block]
            scaled[block] = _scale_columns(part, factors[block], ternary, out=torch.empty(part.shape))
        products = scaled @ ternary.codes.to(dtype)
        inputs = codes.to(dtype)
        d_weights = [
            (part.t() @ inputs).float().mul_(g.reciprocal())
            for part, g in zip(ternary.blocks(scaled), ternary.scales, strict=True)
        ]
        dx = torch.empty_like(x)
        d_gain = torch.zeros_like(gain)
        row_factor = rstd / inverse
        for block in _row_blocks(rows, width):
            p, factor, r = products[block].float(), row_factor[block], rstd[block]
            along = p * x[block]
            d_gain += (factor.t() @ along).squeeze(0)
            shrink = (along @ gain)[:, None] * (factor * r * r / width)
            part = torch.mul(p.mul_(gain), factor, out=dx[block])
            part.addcmul_(x[block], shrink, value=-1.0)
        return dx, d_gain, None, None, None, *d_weights


def _scale_columns(x: Tensor, factors: Tensor, ternary: TernaryCodes, *, out: Tensor) -> Tensor:
    """`out` = x [R, sum of N], the columns of matrix i times the row factors [R, i]."""
    columns = torch.chunk(factors, factors.shape[1], dim=1)
    for source, factor, target in zip(ternary.blocks(x), columns, ternary.blocks(out), strict=True):
        torch.mul(source, factor, out=target)
    return out


class _SiluGate(Function):
    """`silu(gate) * up` of a stacked [M, 2F] product."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((rows, width))
        for block in _row_blocks(rows, 2 * width):
            gate, up = gate_up[block].chunk(2, dim=1)
            torch.mul(F.silu(gate), up, out=out[block])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        rows, width = dh.shape
        grad = torch.empty_like(gate_up)
        for block in _row_blocks(rows, 2 * width):
            gate, up = gate_up[block].chunk(2, dim=1)
            d_gate, d_up = grad[block].chunk(2, dim=1)
            sigmoid = torch.sigmoid(gate)
            silu = gate * sigmoid
            torch.mul(dh[block], silu, out=d_up)
            # silu'(x) = sigmoid + silu * (1 - sigmoid)
            slope = sigmoid.add_(silu.sub_(silu * sigmoid))
            torch.mul(slope.mul_(up), dh[block], out=d_gate)
        return grad


class _Rotate(Function):
    """Half-split rotary positions of [N, heads, head_dim]; the backward pass rotates the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(dy, cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first half of the last dimension against the second; cos and sin [N, 1, head_dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    out = torch.empty(x.shape)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out


def norm_linear(
    x: Tensor, gain: Tensor, weights: tuple[Tensor, ...], *, eps: float, path: StepPath, ternary: TernaryCodes
) -> Tensor:
    """`BitLinear(rms_norm(x))` for matrices that share the input: x [M, K] to [M, sum of N]."""
    return differentiable(_NormLinear, x, gain, eps, path, ternary, *weights)


def silu_gate(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` for [M, 2F] with the gate in the first half."""
    return differentiable(_SiluGate, gate_up)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Differentiable `rotate`."""
    return differentiable(_Rotate, x, cos, sin)
