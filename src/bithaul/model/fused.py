"""The fast halves of a block, one autograd function each: attention and feed-forward, residual included.

Between the matrix products stand the single passes of `kernels`; the two products of the way back are in
`wayback`. This module is the calculus: what is computed in which order, on blocks of rows that the caches
hold, and what is kept for the way back (activations as int8 codes). Blocks are slices of arrays, not of
tensors: each operation of torch gives up the interpreter's lock and takes it again, which two threads pay for
with waiting. Every function computes what its plain
counterpart in `transformer` does, and tests hold its hand-written backward against autograd through the
definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from bithaul.model import kernels
from bithaul.model.autograd import array_of, differentiable
from bithaul.model.bitlinear import TernaryCodes
from bithaul.model.products import product_rows
from bithaul.model.scratch import lasting, scratch
from bithaul.model.segments import Segments
from bithaul.model.wayback import BLOCK_ROWS, WayBack, blocks, way_back

Floats = npt.NDArray[np.float32]


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension: `x / sqrt(mean(x^2) + eps) * gain`, in fp32."""
    return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + eps) * gain


class Places:
    """Where rows stand in attention's layout: per group of segments [segments, heads, longest, head_dim].

    The groups lie one after the other in a flat array; head h of row i starts at `place[i] + h * stride[i]`.
    cos and sin are the rotary angles of the rows, [N, head_dim / 2].
    """

    def __init__(self, segments: Segments, heads: int, size: int, cos: Tensor, sin: Tensor) -> None:
        self.segments, self.heads, self.size = segments, heads, size
        self.cos, self.sin = array_of(cos), array_of(sin)
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

    def of(self, rows: slice) -> tuple[Any, Any, Any, Any]:
        """cos, sin, place and stride of some rows."""
        return self.cos[rows], self.sin[rows], self.place[rows], self.stride[rows]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat array, one per group: [segments * heads, longest, head_dim]."""
        return [flat[part].view(-1, longest, self.size) for part, longest in self._ranges]

    def rows_of(self, flat: Tensor) -> Tensor:
        """The rows [N, H] of a flat array."""
        out = lasting((len(self.place), self.heads * self.size))
        kernels.gather_heads(array_of(flat), self.size, self.place, self.stride, array_of(out))
        return out

    def empty(self) -> Tensor:
        """A flat array to be filled with rows; 0 where there is none."""
        flat = lasting((self.total,))
        self._clear(flat)
        return flat

    def _clear(self, flat: Tensor) -> None:
        if self.total != len(self.place) * self.heads * self.size:
            flat.zero_()

    def scatter(self, rows: Tensor, flat: Tensor) -> Tensor:
        """The way back of `rows_of`; 0 where there is no row."""
        self._clear(flat)
        kernels.scatter_heads(array_of(rows), self.size, self.place, self.stride, array_of(flat))
        return flat


class _Input:
    """The normed and quantised rows of one stacked product: what its forward made and its backward needs."""

    def __init__(self, rows: int, width: int, ternary: TernaryCodes) -> None:
        self._codes = lasting((rows, width), torch.int8)
        self._codes_array = array_of(self._codes)
        self._rstd: Floats = np.empty(rows, np.float32)
        self.inverse: Floats = np.empty(rows, np.float32)
        self._ternary = ternary
        self.scales = np.array(ternary.scales, dtype=np.float32)

    @classmethod
    def of(cls, x: Tensor, gain: Tensor, eps: float, ternary: TernaryCodes) -> _Input:
        made = cls(x.shape[0], x.shape[1], ternary)
        kernels.norm_quantize(array_of(x), array_of(gain), np.float32(eps), *made.arrays(slice(None)))
        return made

    def arrays(self, block: slice) -> tuple[Any, Any, Any]:
        """int8 codes, `1 / rms` and `1 / s` of some rows."""
        return self._codes_array[block], self._rstd[block], self.inverse[block]

    def products(self, use: Callable[[slice, Any, Any], None]) -> None:
        """Calls `use(rows, sums, 1 / s)` for blocks of rows whose sums are still in the cache."""
        kernel, operand, outputs = self._ternary.path.kernel, self._ternary.operand, sum(self._ternary.widths)
        step, start, rows = product_rows(outputs), 0, len(self._codes_array)
        for part in torch.split(self._codes, step):
            block = slice(start, min(start + step, rows))
            memory = scratch("sums", (block.stop - start, outputs), kernel.sums)
            use(block, array_of(kernel.multiply(part, operand, memory)), self.inverse[block])
            start += step

    def way_back(self, name: str) -> WayBack:
        return way_back(name, self._codes, self._ternary, self._ternary.path)


class _Norm:
    """The way back through the codes and the norm of `x`: fills `dx` and `d_gain`."""

    def __init__(self, x: Tensor, gain: Tensor, source: _Input) -> None:
        self._x, self._gain, self._source = array_of(x), array_of(gain), source
        self.dx, self.d_gain = lasting(tuple(x.shape)), torch.zeros_like(gain)
        self._dx, self._d_gain = array_of(self.dx), array_of(self.d_gain)

    def backward(self, rows: slice, p: Any, residual: Any) -> None:
        """From p = (f dy) T [rows, K] and the gradient that comes along the residual stream to dx."""
        _, rstd, inverse = self._source.arrays(rows)
        x, dx = self._x[rows], self._dx[rows]
        kernels.norm_backward(p, x, self._gain, rstd, inverse, residual, dx, self._d_gain)


def _heads_of(source: _Input, places: Places) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, flat in attention's layout; 0 where there is no row."""
    parts = (places.empty(), places.empty(), places.empty())
    arrays = [array_of(part) for part in parts]

    def use(rows: slice, sums: Any, inverse: Any) -> None:
        kernels.scale_rotate(
            sums,
            inverse,
            source.scales,
            *places.of(rows),
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


class _Attention(Function):
    """`x + o(rms_norm(attention(rms_norm(x))))`, quantised, with rotary positions: x [N, H] to [N, H]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        sub_gain: Tensor,
        eps: float,
        qkv: TernaryCodes,
        out: TernaryCodes,
        places: Places,
        *_weights: Tensor,
    ) -> Tensor:
        source = _Input.of(x, gain, eps, qkv)
        flat = _heads_of(source, places)
        mixed, weights = scratch("mixed", (places.total,)), []
        ctx.scale = np.float32(places.size**-0.5)
        for q, k, v, group in zip(*map(places.split, (*flat, mixed)), strict=True):
            scores = lasting((len(q), q.shape[1], q.shape[1]))
            torch.bmm(q, k.transpose(1, 2), out=scores)
            kernels.causal_softmax(array_of(scores), ctx.scale)
            weights.append(scores)
            torch.bmm(scores, v, out=group)
        rows = places.rows_of(mixed)
        inner = _Input.of(rows, sub_gain, eps, out)
        ctx.source, ctx.inner, ctx.places = source, inner, places
        ctx.save_for_backward(x, gain, sub_gain, rows, *flat, *weights)
        return _joined(inner, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, sub_gain, mixed, *flat = ctx.saved_tensors
        source: _Input = ctx.source
        inner: _Input = ctx.inner
        places: Places = ctx.places
        after = array_of(dy.contiguous())
        join, way = _Norm(mixed, sub_gain, inner), inner.way_back("join")
        nothing = array_of(scratch("nothing", (min(len(after), BLOCK_ROWS), after.shape[1])).zero_())
        for rows in blocks(len(after)):
            _fill_scaled(way.block(rows), after[rows], inner, rows)
            join.backward(rows, way.multiply(rows), nothing[: rows.stop - rows.start])
        gradients = [array_of(g) for g in _attention_backward(places, join.dx, flat, ctx.scale)]
        norm, heads_way = _Norm(x, gain, source), source.way_back("heads")
        for rows in blocks(len(after)):
            scaled, inverse = heads_way.block(rows), source.inverse[rows]
            kernels.rotate_back(*gradients, inverse, source.scales, *places.of(rows), scaled)
            norm.backward(rows, heads_way.multiply(rows), after[rows])
        d_weights = (*heads_way.weight_gradients(), *way.weight_gradients())
        return norm.dx, norm.d_gain, join.d_gain, None, None, None, None, *d_weights


def _attention_backward(
    places: Places, d_rows: Tensor, kept: list[Tensor], scale: np.float32
) -> list[Tensor]:
    """Gradients of the rotated queries and keys and of the values, flat, in scratch memory."""
    d_mixed = places.scatter(d_rows, scratch("mixed", (places.total,)))
    gradients = [scratch(name, (places.total,)) for name in ("d_q", "d_k", "d_v")]
    parts = map(places.split, (*kept[:3], d_mixed, *gradients))
    for (q, k, v, d_out, dq, dk, dv), weights in zip(zip(*parts, strict=True), kept[3:], strict=True):
        slopes = torch.bmm(d_out, v.transpose(1, 2), out=scratch("slopes", tuple(weights.shape)))
        torch.bmm(weights.transpose(1, 2), d_out, out=dv)
        kernels.softmax_backward(array_of(weights), array_of(slopes), scale)
        torch.bmm(slopes, k, out=dq)
        torch.bmm(slopes.transpose(1, 2), q, out=dk)
    return gradients


def _joined(source: _Input, residual: Tensor) -> Tensor:
    out, before = lasting(tuple(residual.shape)), array_of(residual)
    after = array_of(out)

    def use(rows: slice, sums: Any, inverse: Any) -> None:
        kernels.scale_add(sums, inverse, source.scales[0], before[rows], after[rows])

    source.products(use)
    return out


def _fill_scaled(scaled: Any, dy: Any, source: _Input, rows: slice) -> None:
    kernels.scale_gradient(dy, source.inverse[rows], source.scales[0], scaled)


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
        *_weights: Tensor,
    ) -> Tensor:
        source = _Input.of(x, gain, eps, gate_up)
        width, dtype = gate_up.widths[0], gate_up.path.gradient_dtype
        kept, inner = lasting((len(x), 2 * width), dtype), _Input(len(x), width, down)
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
        ctx.source, ctx.inner, ctx.squared = source, inner, squared
        ctx.save_for_backward(x, gain, sub_gain, kept)
        return _joined(inner, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, sub_gain, kept = ctx.saved_tensors
        source: _Input = ctx.source
        inner: _Input = ctx.inner
        after, kept_array, sub = array_of(dy.contiguous()), array_of(kept), array_of(sub_gain)
        down, gate_up = inner.way_back("down"), source.way_back("gate_up")
        norm, d_sub = _Norm(x, gain, source), torch.zeros_like(sub_gain)
        d_sub_array = array_of(d_sub)
        for rows in blocks(len(after)):
            _fill_scaled(down.block(rows), after[rows], inner, rows)
            p, (_, rstd, inverse) = down.multiply(rows), inner.arrays(rows)
            kernels.gate_backward(
                p,
                kept_array[rows],
                ctx.squared,
                sub,
                rstd,
                inverse,
                source.inverse[rows],
                source.scales,
                gate_up.block(rows),
                d_sub_array,
            )
            norm.backward(rows, gate_up.multiply(rows), after[rows])
        d_weights = (*gate_up.weight_gradients(), *down.weight_gradients())
        return norm.dx, norm.d_gain, d_sub, None, None, None, None, *d_weights


def attention(
    x: Tensor,
    gains: tuple[Tensor, Tensor],
    weights: tuple[Tensor, ...],
    *,
    eps: float,
    qkv: TernaryCodes,
    out: TernaryCodes,
    places: Places,
) -> Tensor:
    """The first half of a block, [N, H]; gains of both norms, weights q, k, v, o."""
    return differentiable(_Attention, x, *gains, eps, qkv, out, places, *weights)


def join(residual: Tensor, x: Tensor, gain: Tensor, *, eps: float, ternary: TernaryCodes) -> Tensor:
    """`residual + BitLinear(rms_norm(x))`, [N, H], without gradients."""
    return _joined(_Input.of(x.detach().contiguous(), gain, eps, ternary), residual)


def feed_forward(
    x: Tensor,
    gains: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor],
    *,
    eps: float,
    squared: bool,
    gate_up: TernaryCodes,
    down: TernaryCodes,
) -> Tensor:
    """The second half of a block, [N, H]; gains of both norms, weights gate, up, down."""
    return differentiable(_FeedForward, x, *gains, eps, squared, gate_up, down, *weights)
