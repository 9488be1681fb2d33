"""The fast pieces of a block, each one autograd function: attention's input, its output, the feed-forward.

Between the matrix products stand the single passes of `kernels`; this module is the calculus: which products,
in which order, and what is kept for the way back (activations as int8 codes). Every function computes what
its plain counterpart in `transformer` does, and tests hold its hand-written backward against autograd
through the definition.

With y = (X T^t) f, f = g / s per row and matrix: one scaled copy of dy serves both products, dW =
(f dy)^t X / g and p = (f dy) T, the gradient of the input over s. The factor s joins those of the norm in
`norm_backward`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from bithaul.model import kernels
from bithaul.model.autograd import array_of, differentiable
from bithaul.model.bitlinear import TernaryCodes
from bithaul.model.products import StepPath, product_rows
from bithaul.model.scratch import scratch
from bithaul.model.segments import Segments


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension: `x / sqrt(mean(x^2) + eps) * gain`, in fp32."""
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps) * gain


class Places:
    """Where rows stand in attention's layout: per group of segments [segments, heads, longest, head_dim].

    The groups lie one after the other in a flat array; head h of row i starts at `place[i] + h * stride[i]`.
    cos and sin are the rotary angles of the rows, [N, head_dim / 2].
    """

    def __init__(self, segments: Segments, heads: int, size: int, cos: Tensor, sin: Tensor) -> None:
        self.segments, self.heads, self.size, self.cos, self.sin = segments, heads, size, cos, sin
        bases, strides, total = [], [], 0
        self._ranges: list[tuple[slice, int]] = []
        for group in segments.groups:
            stride = group.longest * size
            bases.append(total + torch.arange(group.count) * (heads * stride))
            strides += [stride] * group.count
            end = total + group.count * heads * stride
            self._ranges.append((slice(total, end), group.longest))
            total = end
        self.total = total
        rows = segments.rows
        self.place = (torch.cat(bases)[rows] + segments.positions * size).numpy()
        self.stride = torch.tensor(strides)[rows].numpy()

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat array, one per group: [segments * heads, longest, head_dim]."""
        return [flat[part].view(-1, longest, self.size) for part, longest in self._ranges]

    def rows_of(self, flat: Tensor) -> Tensor:
        """The rows [N, H] of a flat array."""
        out = torch.empty(len(self.place), self.heads * self.size)
        kernels.gather_heads(array_of(flat), self.size, self.place, self.stride, array_of(out))
        return out

    def scatter(self, rows: Tensor, flat: Tensor) -> Tensor:
        """The way back of `rows_of`; 0 where there is no row."""
        flat.zero_()
        kernels.scatter_heads(array_of(rows), self.size, self.place, self.stride, array_of(flat))
        return flat


class _Input:
    """The normed and quantised rows of one stacked product: what its forward made and its backward needs."""

    def __init__(self, rows: int, width: int, ternary: TernaryCodes) -> None:
        self.codes = torch.empty((rows, width), dtype=torch.int8)
        self.rstd, self.inverse = torch.empty(rows), torch.empty(rows)
        self.ternary = ternary
        self.scales = np.array(ternary.scales, dtype=np.float32)

    @classmethod
    def of(cls, x: Tensor, gain: Tensor, eps: float, ternary: TernaryCodes) -> _Input:
        made = cls(x.shape[0], x.shape[1], ternary)
        kernels.norm_quantize(array_of(x), array_of(gain), np.float32(eps), *made.arrays(slice(None)))
        return made

    def arrays(self, block: slice) -> tuple[Any, Any, Any]:
        return array_of(self.codes[block]), array_of(self.rstd[block]), array_of(self.inverse[block])

    def products(self, use: Callable[[slice, Any, Any], None]) -> None:
        """Calls `use(rows, sums, 1 / s)` for blocks of rows whose sums are still in the cache."""
        inverse, kernel, outputs = array_of(self.inverse), self.ternary.kernel, len(self.ternary.codes)
        step = product_rows(outputs)
        memory = scratch("sums", (min(len(self.codes), step), outputs), kernel.sums)
        for start in range(0, len(self.codes), step):
            rows = self.codes[start : start + step]
            sums = kernel.multiply(rows, self.ternary.operand, memory[: len(rows)])
            block = slice(start, start + len(rows))
            use(block, sums.numpy(), inverse[block])

    def weight_gradients(self, scaled: Tensor) -> list[Tensor]:
        """dW of each matrix, from the scaled gradient of all outputs [M, sum of N]."""
        inputs = _converted("inputs", self.codes, scaled.dtype)
        shape = (scaled.shape[1], inputs.shape[1])
        product = torch.mm(scaled.t(), inputs, out=scratch("weights", shape, scaled.dtype))
        gradients = []
        for part, g in zip(torch.split(product, list(self.ternary.widths)), self.scales, strict=True):
            gradient = torch.empty(part.shape)
            kernels.widen_scaled(array_of(part), np.float32(1.0) / g, array_of(gradient))
            gradients.append(gradient)
        return gradients

    def input_gradient(self, scaled: Tensor) -> Tensor:
        """p = (f dy) T [M, K], in scratch memory."""
        codes = _converted("codes", self.ternary.codes, scaled.dtype)
        shape = (scaled.shape[0], codes.shape[1])
        return torch.mm(scaled, codes, out=scratch("p", shape, scaled.dtype))


def _converted(name: str, codes: Tensor, dtype: torch.dtype) -> Tensor:
    return scratch(name, tuple(codes.shape), dtype).copy_(codes)


def _through_norm(
    p: Tensor, x: Tensor, gain: Tensor, source: _Input, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """dx (with the gradient of the residual stream added) and d_gain."""
    dx, d_gain = torch.empty_like(x), torch.zeros_like(gain)
    kernels.norm_backward(
        *map(array_of, (p, x, gain, source.rstd, source.inverse, residual, dx, d_gain)),
    )
    return dx, d_gain


def _heads_of(source: _Input, places: Places) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, flat in attention's layout; 0 where there is no row."""
    parts = (torch.zeros(places.total), torch.zeros(places.total), torch.zeros(places.total))
    cos, sin, arrays = array_of(places.cos), array_of(places.sin), [array_of(part) for part in parts]

    def use(rows: slice, sums: Any, inverse: Any) -> None:
        kernels.scale_rotate(
            sums,
            inverse,
            source.scales,
            cos[rows],
            sin[rows],
            places.place[rows],
            places.stride[rows],
            *arrays,
        )

    source.products(use)
    return parts


def heads_for_cache(
    x: Tensor, gain: Tensor, *, eps: float, ternary: TernaryCodes, places: Places
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of `rms_norm(x)` without gradients, [segments, heads, width, head_dim].

    All segments are equally long.
    """
    shape = (places.segments.count, places.heads, places.segments.longest, places.size)
    q, k, v = (part.view(shape) for part in _heads_of(_Input.of(x, gain, eps, ternary), places))
    return q, k, v


class _Attend(Function):
    """Norm, quantisation, stacked q k v product, rotary positions, causal attention: x [N, H] to [N, H]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        eps: float,
        ternary: TernaryCodes,
        dtype: torch.dtype,
        places: Places,
        *_weights: Tensor,
    ) -> Tensor:
        source = _Input.of(x, gain, eps, ternary)
        flat = _heads_of(source, places)
        mixed, weights = scratch("mixed", (places.total,)), []
        ctx.scale = np.float32(places.size**-0.5)
        for q, k, v, out in zip(*map(places.split, (*flat, mixed)), strict=True):
            scores = torch.bmm(q, k.transpose(1, 2))
            kernels.causal_softmax(array_of(scores), ctx.scale)
            weights.append(scores)
            torch.bmm(scores, v, out=out)
        ctx.source, ctx.places, ctx.dtype = source, places, dtype
        ctx.save_for_backward(x, gain, *flat, *weights)
        return places.rows_of(mixed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, *flat = ctx.saved_tensors
        source: _Input = ctx.source
        places: Places = ctx.places
        d_mixed = places.scatter(d_out.contiguous(), scratch("mixed", (places.total,)))
        gradients = [scratch(name, (places.total,)) for name in ("d_q", "d_k", "d_v")]
        parts = map(places.split, (*flat[:3], d_mixed, *gradients))
        for (q, k, v, d_out, dq, dk, dv), weights in zip(zip(*parts, strict=True), flat[3:], strict=True):
            slopes = torch.bmm(d_out, v.transpose(1, 2), out=scratch("slopes", tuple(weights.shape)))
            torch.bmm(weights.transpose(1, 2), d_out, out=dv)
            kernels.softmax_backward(array_of(weights), array_of(slopes), ctx.scale)
            torch.bmm(slopes, k, out=dq)
            torch.bmm(slopes.transpose(1, 2), q, out=dk)
        scaled = scratch("scaled", (len(x), 3 * x.shape[1]), ctx.dtype)
        kernels.rotate_back(
            *map(array_of, gradients),
            array_of(source.inverse),
            source.scales,
            array_of(places.cos),
            array_of(places.sin),
            places.place,
            places.stride,
            array_of(scaled),
        )
        p = source.input_gradient(scaled)
        dx, d_gain = _through_norm(p, x, gain, source, torch.zeros_like(x))
        return dx, d_gain, None, None, None, None, *source.weight_gradients(scaled)


class _Join(Function):
    """`residual + BitLinear(rms_norm(x))`."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        x: Tensor,
        gain: Tensor,
        eps: float,
        ternary: TernaryCodes,
        dtype: torch.dtype,
        *_weights: Tensor,
    ) -> Tensor:
        source = _Input.of(x, gain, eps, ternary)
        ctx.source, ctx.dtype = source, dtype
        ctx.save_for_backward(x, gain)
        return _joined(source, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain = ctx.saved_tensors
        source: _Input = ctx.source
        scaled = _scaled(source, dy.contiguous(), ctx.dtype)
        dx, d_gain = _through_norm(source.input_gradient(scaled), x, gain, source, torch.zeros_like(x))
        return dy, dx, d_gain, None, None, None, *source.weight_gradients(scaled)


def _joined(source: _Input, residual: Tensor) -> Tensor:
    out, before = torch.empty_like(residual), array_of(residual)
    after = array_of(out)

    def use(rows: slice, sums: Any, inverse: Any) -> None:
        kernels.scale_add(sums, inverse, source.scales[0], before[rows], after[rows])

    source.products(use)
    return out


def _scaled(source: _Input, dy: Tensor, dtype: torch.dtype) -> Tensor:
    scaled = scratch("scaled", tuple(dy.shape), dtype)
    kernels.scale_gradient(array_of(dy), array_of(source.inverse), source.scales[0], array_of(scaled))
    return scaled


class _FeedForward(Function):
    """`x + down(rms_norm(act(gate(n)) * up(n)))` with n = rms_norm(x), all of it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        sub_gain: Tensor,
        eps: float,
        squared: bool,
        gate_up: TernaryCodes,
        down: TernaryCodes,
        dtype: torch.dtype,
        *_weights: Tensor,
    ) -> Tensor:
        source = _Input.of(x, gain, eps, gate_up)
        width = gate_up.widths[0]
        kept, inner = torch.empty((len(x), 2 * width), dtype=dtype), _Input(len(x), width, down)
        kept_array, sub = array_of(kept), array_of(sub_gain)

        def use(rows: slice, sums: Any, inverse: Any) -> None:
            kernels.gate_quantize(
                sums,
                inverse,
                source.scales,
                squared,
                sub,
                np.float32(eps),
                kept_array[rows],
                *inner.arrays(rows),
            )

        source.products(use)
        ctx.source, ctx.inner, ctx.squared, ctx.dtype = source, inner, squared, dtype
        ctx.save_for_backward(x, gain, sub_gain, kept)
        return _joined(inner, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, sub_gain, kept = ctx.saved_tensors
        source: _Input = ctx.source
        inner: _Input = ctx.inner
        dy = dy.contiguous()
        outer = _scaled(inner, dy, ctx.dtype)
        p = inner.input_gradient(outer)
        d_down = inner.weight_gradients(outer)
        scaled, d_sub = scratch("scaled", tuple(kept.shape), ctx.dtype), torch.zeros_like(sub_gain)
        kernels.gate_backward(
            array_of(p),
            array_of(kept),
            ctx.squared,
            array_of(sub_gain),
            array_of(inner.rstd),
            array_of(inner.inverse),
            array_of(source.inverse),
            source.scales,
            array_of(scaled),
            array_of(d_sub),
        )
        dx, d_gain = _through_norm(source.input_gradient(scaled), x, gain, source, dy)
        d_weights = source.weight_gradients(scaled)
        return dx, d_gain, d_sub, None, None, None, None, None, *d_weights, *d_down


def attend(
    x: Tensor,
    gain: Tensor,
    weights: tuple[Tensor, ...],
    *,
    eps: float,
    path: StepPath,
    ternary: TernaryCodes,
    places: Places,
) -> Tensor:
    """Attention over `rms_norm(x)` before its output projection: x [N, H] to [N, H]."""
    return differentiable(_Attend, x, gain, eps, ternary, path.gradient_dtype, places, *weights)


def join(
    residual: Tensor,
    x: Tensor,
    gain: Tensor,
    weight: Tensor,
    *,
    eps: float,
    path: StepPath,
    ternary: TernaryCodes,
) -> Tensor:
    """`residual + BitLinear(rms_norm(x))`, [N, H]."""
    return differentiable(_Join, residual, x, gain, eps, ternary, path.gradient_dtype, weight)


def feed_forward(
    x: Tensor,
    gains: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    *,
    eps: float,
    squared: bool,
    path: StepPath,
    gate_up: TernaryCodes,
    down: TernaryCodes,
) -> Tensor:
    """The second half of a block, [N, H]; gains of both norms, weights gate, up, down."""
    return differentiable(_FeedForward, x, *gains, eps, squared, gate_up, down, path.gradient_dtype, *weights)
