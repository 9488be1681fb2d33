"""The passes over memory of a training step, fused: each reads its operands once and writes its results once.

Between two matrix products everything that happens to a row (scaling the integer sums, rotary positions, the
gate, the residual, norm, largest value, rounding) is one compiled loop here: a CPU would otherwise spend most
of a step moving memory. numba compiles them on first use and keeps the machine code on disk, so no C++
compiler is needed. Plain arrays in and out; `fused` holds the calculus, `quantize` and `bitlinear` the
definitions that tests hold these loops against.

Rows are independent: a caller may hand any block of rows to any thread. Arrays are C-contiguous. "Sums" are
int32 or float32 integers from a product. "Gradient" arrays are float32, or uint16 holding the bits of bf16.

Loops are kept small: the compiler handles many values at a time only where it can check quickly that no two
arrays overlap, which it gives up for more than about four of them. Functions whose order of operations
decides a rounding are compiled without reassociation (`EXACT`); only plain sums are reordered.
"""

from __future__ import annotations

import numba
import numpy as np
from numba.extending import overload

from bithaul.compiled import EXACT, SUMS, compiled
from bithaul.model.lanes import LANES, move, turn

ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to the nearest even integer
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_FLOOR, _MOST = np.float32(1e-5), np.float32(127.0)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def widen(element):
    """float32 of a gradient element."""
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(element):
    if element == numba.uint16:
        return lambda element: np.uint32(np.uint32(element) << np.uint32(16)).view(np.float32)
    return lambda element: np.float32(element)


def narrow(value, like):
    """`value` as an element of the gradient array `like`, rounded to the nearest even bf16."""
    raise NotImplementedError


@overload(narrow, inline="always")
def _narrow(value, like):
    if like.dtype == numba.uint16:

        def to_bf16(value, like):
            bits = np.float32(value).view(np.uint32)
            half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            return np.uint16((bits + half) >> np.uint32(16))

        return to_bf16
    return lambda value, like: value


@compiled(EXACT)
def _exp(x):
    """e^x in fp32, relative error below 2e-7, for x held inside -60 to 88.

    Everywhere here the result is added to 1 or more, so e^-60 is as good as anything smaller, and products
    with it stay clear of denormal numbers, which cost a hundred times as much.
    """
    x = min(max(x, np.float32(-60.0)), np.float32(88.0))
    n = (x * _LOG2_E + ROUND) - ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * r * r + r + _ONE
    return y * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled(SUMS)
def _sum_of_squares(x):
    total = _ZERO
    for j in range(x.shape[0]):
        total += x[j] * x[j]
    return total


@compiled(EXACT)
def _largest(x):
    """The largest value. Compared as integers in float order, which the compiler can do many at a time."""
    largest = np.int32(-(2**31))
    for j in range(x.shape[0]):
        bits = np.float32(x[j]).view(np.int32)
        largest = max(largest, bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.int32(largest ^ ((largest >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@compiled(EXACT)
def largest_size(x):
    """The largest absolute value; without their sign, floats compare like integers."""
    largest = np.int32(0)
    for j in range(x.shape[0]):
        largest = max(largest, np.float32(x[j]).view(np.int32) & np.int32(0x7FFFFFFF))
    return np.int32(largest).view(np.float32)


@compiled(EXACT)
def _quantize_row(normed, codes):
    """Codes of a row by its largest value; returns `1 / s`."""
    scale = _MOST / max(largest_size(normed), _FLOOR)
    for j in range(normed.shape[0]):
        codes[j] = np.int8(np.int32((normed[j] * scale + ROUND) - ROUND))
    return _ONE / scale


@compiled(EXACT)
def norm_quantize(x, gain, eps, codes, rstd, inverse):
    """RMSNorm and activation codes of x [M, K]: int8 codes [M, K], `1 / rms` [M] and `1 / s` [M]."""
    width = x.shape[1]
    normed = np.empty(width, np.float32)
    for i in range(x.shape[0]):
        r = _ONE / np.sqrt(_sum_of_squares(x[i]) / np.float32(width) + eps)
        for j in range(width):
            normed[j] = x[i, j] * r * gain[j]
        inverse[i] = _quantize_row(normed, codes[i])
        rstd[i] = r


@compiled(EXACT)
def scale_add(sums, inverse, g, x, out):
    """`out = x + sums * (inverse * g)`: a branch joins the residual stream."""
    for i in range(sums.shape[0]):
        factor = inverse[i] * g
        for j in range(sums.shape[1]):
            out[i, j] = x[i, j] + np.float32(sums[i, j]) * factor


@compiled(EXACT)
def scale_rotate(sums, inverse, scales, cos, sin, place, stride, queries, keys, values):
    """Sums [M, 3H] to rotated queries and keys and to values, each in a flat array of attention's layout.

    Head h of row i starts at `place[i] + h * stride[i]`; cos and sin of the rows are [M, head_dim / 2].
    """
    hidden, size = sums.shape[1] // 3, 2 * cos.shape[1]
    heads = np.empty((3, size), np.float32)
    query, key, value = heads[0], heads[1], heads[2]
    for head in range(hidden // size):  # not row by row: arrays are written in the order of their memory
        for i in range(sums.shape[0]):
            for part in range(3):
                factor, at = inverse[i] * scales[part], part * hidden + head * size
                for j in range(size):
                    heads[part, j] = np.float32(sums[i, at + j]) * factor
            to = place[i] + head * stride[i]
            _rotate(query, 0, cos, sin, i, _ONE, queries, to)
            _rotate(key, 0, cos, sin, i, _ONE, keys, to)
            _copy(value, 0, size, values, to)


@compiled(EXACT)
def _rotate(x, at, cos, sin, i, sign, out, to):
    """The first half of a head against the second, by the angles of row i; a sign of -1 turns back."""
    half = cos.shape[1]
    whole = half - half % LANES
    for j in range(0, whole, LANES):
        turn(x, at + j, half, cos, sin, i * half + j, sign, out, to + j)
    for j in range(whole, half):
        a, b, c, s = x[at + j], x[at + half + j], cos[i, j], sign * sin[i, j]
        out[to + j] = a * c - b * s
        out[to + half + j] = b * c + a * s


@compiled(EXACT)
def _copy(x, at, size, out, to):
    whole = size - size % LANES
    for j in range(0, whole, LANES):
        move(x, at + j, out, to + j)
    for j in range(whole, size):
        out[to + j] = x[at + j]


@compiled(EXACT)
def rotate_back(queries, keys, values, inverse, scales, cos, sin, place, stride, scaled):
    """Gradients in `scale_rotate`'s layout, rotated back and scaled for the two products [M, 3H]."""
    hidden, size = scaled.shape[1] // 3, 2 * cos.shape[1]
    head_rows = np.empty((3, size), np.float32)
    queries_row, keys_row, values_row = head_rows[0], head_rows[1], head_rows[2]
    for head in range(hidden // size):  # not row by row: arrays are read in the order of their memory
        for i in range(scaled.shape[0]):
            at = place[i] + head * stride[i]
            _rotate(queries, at, cos, sin, i, -_ONE, queries_row, 0)
            _rotate(keys, at, cos, sin, i, -_ONE, keys_row, 0)
            _copy(values, at, size, values_row, 0)
            for part in range(3):
                factor, to = inverse[i] * scales[part], part * hidden + head * size
                for j in range(size):
                    scaled[i, to + j] = narrow(head_rows[part, j] * factor, scaled)


@compiled(EXACT)
def gather_heads(mixed, size, place, stride, out):
    """Attention's flat layout, heads of `size` values, to the rows [M, H]."""
    width = out.shape[1]
    flat = out.reshape(-1)
    for i in range(out.shape[0]):
        for head in range(width // size):
            _copy(mixed, place[i] + head * stride[i], size, flat, i * width + head * size)


@compiled(EXACT)
def scatter_heads(rows, size, place, stride, mixed):
    """The way back of `gather_heads`; places without a row keep what they hold."""
    width = rows.shape[1]
    flat = rows.reshape(-1)
    for i in range(rows.shape[0]):
        for head in range(width // size):
            _copy(flat, i * width + head * size, size, mixed, place[i] + head * stride[i])


@compiled(SUMS)
def causal_softmax(scores, scale):
    """Softmax of scores [B, T, T] times `scale`, in place: where `j > i` the weight is 0."""
    width = scores.shape[2]
    for b in range(scores.shape[0]):
        for i in range(width):
            seen = scores[b, i, : i + 1]
            largest, total = _largest(seen), _ZERO
            for j in range(i + 1):
                value = _exp((seen[j] - largest) * scale)
                seen[j] = value
                total += value
            share = _ONE / total
            for j in range(i + 1):
                seen[j] *= share
            for j in range(i + 1, width):
                scores[b, i, j] = _ZERO


@compiled(EXACT)
def softmax_backward(weights, slopes, scale):
    """The gradient of the weights [B, T, T] becomes that of the scores before `scale`, in place."""
    for b in range(weights.shape[0]):
        for i in range(weights.shape[1]):
            along = _dot(weights[b, i], slopes[b, i])
            for j in range(weights.shape[2]):
                slopes[b, i, j] = weights[b, i, j] * (slopes[b, i, j] - along) * scale


@compiled(SUMS)
def _dot(a, b):
    total = _ZERO
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@compiled(EXACT)
def scale_gradient(dy, inverse, g, scaled):
    """`scaled = dy * (inverse * g)` [M, N]."""
    for i in range(dy.shape[0]):
        factor = inverse[i] * g
        for j in range(dy.shape[1]):
            scaled[i, j] = narrow(dy[i, j] * factor, scaled)


@compiled(SUMS)
def _norm_slope(p, x, gain):
    """`sum(p * gain * x)`."""
    total = _ZERO
    for j in range(x.shape[0]):
        total += widen(p[j]) * gain[j] * x[j]
    return total


@compiled(EXACT)
def norm_backward(p, x, gain, rstd, inverse, residual, dx, d_gain):
    """From p = (f dy) T [M, K] through the codes and the norm.

    `dx = residual + r (s p gain - x r^2 s mean(p gain x))`; `d_gain` [K] is added to.
    """
    width = x.shape[1]
    for i in range(x.shape[0]):
        r = rstd[i]
        factor = r / inverse[i]
        shrink = _norm_slope(p[i], x[i], gain) * (factor * r * r / np.float32(width))
        for j in range(width):
            along = widen(p[i, j]) * factor
            d_gain[j] += along * x[i, j]
            dx[i, j] = residual[i, j] + (along * gain[j] - x[i, j] * shrink)


@compiled(EXACT)
def gate_quantize(sums, inverse, scales, squared, gain, eps, gate_up, codes, rstd, inverse_out):
    """sums [M, 2F] to `act(gate) * up`, its norm and its codes [M, F]; gate and up are kept in `gate_up`."""
    width = sums.shape[1] // 2
    gated = np.empty(width, np.float32)
    for i in range(sums.shape[0]):
        gate_factor, up_factor = inverse[i] * scales[0], inverse[i] * scales[1]
        for j in range(width):
            gate, up = np.float32(sums[i, j]) * gate_factor, np.float32(sums[i, width + j]) * up_factor
            gate_up[i, j], gate_up[i, width + j] = narrow(gate, gate_up), narrow(up, gate_up)
            gated[j] = _gated(gate, up, squared)
        r = _ONE / np.sqrt(_sum_of_squares(gated) / np.float32(width) + eps)
        for j in range(width):
            gated[j] = gated[j] * r * gain[j]
        inverse_out[i] = _quantize_row(gated, codes[i])
        rstd[i] = r


@compiled(EXACT)
def _gated(gate, up, squared):
    if squared:
        positive = max(gate, _ZERO)
        return positive * positive * up
    return gate / (_ONE + _exp(-gate)) * up


@compiled(EXACT)
def gate_backward(p, gate_up, squared, gain, rstd, inverse_out, inverse, scales, scaled, d_gain):
    """From p [M, F], the gradient at the codes of `gate_quantize`, to that at its sums, scaled [M, 2F]."""
    width = p.shape[1]
    # The activation (silu or squared relu) and its slope, then the gated value.
    active, slope, gated = (
        np.empty(width, np.float32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
    )
    for i in range(p.shape[0]):
        for j in range(width):
            gate = widen(gate_up[i, j])
            if squared:
                positive = max(gate, _ZERO)
                active[j], slope[j] = positive * positive, positive + positive
            else:
                sigmoid = _ONE / (_ONE + _exp(-gate))
                silu = gate * sigmoid
                active[j], slope[j] = silu, sigmoid + silu * (_ONE - sigmoid)
            gated[j] = active[j] * widen(gate_up[i, width + j])
        r = rstd[i]
        factor = r / inverse_out[i]
        shrink = _norm_slope(p[i], gated, gain) * (factor * r * r / np.float32(width))
        gate_factor, up_factor = inverse[i] * scales[0], inverse[i] * scales[1]
        for j in range(width):
            along = widen(p[i, j]) * factor
            d_gain[j] += along * gated[j]
            gated[j] = along * gain[j] - gated[j] * shrink
        for j in range(width):
            up = widen(gate_up[i, width + j])
            scaled[i, j] = narrow(gated[j] * slope[j] * up * gate_factor, scaled)
            scaled[i, width + j] = narrow(gated[j] * active[j] * up_factor, scaled)


@compiled(EXACT)
def widen_scaled(source, factor, out):
    """`out = source * factor` in float32, for gradient arrays [N, K]."""
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            out[i, j] = widen(source[i, j]) * factor


@compiled(SUMS)
def cross_entropy(logits, width, targets, share, smoothing, losses, uniform_losses, d_logits):
    """Rows of logits [M, V] to cross-entropy [M], the same against uniform targets [M], and gradient [M, V].

    `d_logits = (p - (1 - smoothing) onehot - smoothing / V) * share[i]`. Without smoothing the uniform losses
    stay as they are. Rows of both may be longer than V = `width`; both may be the same memory.
    """
    even = smoothing / np.float32(width)
    row = np.empty(width, np.float32)
    for i in range(logits.shape[0]):
        at, total = targets[i], _ZERO
        for j in range(width):
            row[j] = widen(logits[i, j])
        wanted = row[at]
        largest = _largest(row)
        if smoothing > _ZERO:
            mean = _ZERO
            for j in range(width):
                mean += row[j]
            uniform_losses[i] = -mean / np.float32(width)
        for j in range(width):
            value = _exp(row[j] - largest)
            row[j] = value
            total += value
        log_sum = largest + np.log(total)
        losses[i] = log_sum - wanted
        if smoothing > _ZERO:
            uniform_losses[i] += log_sum
        weight, level = share[i] / total, even * share[i]
        wanted = row[at] * weight - level - (_ONE - smoothing) * share[i]
        for j in range(width):
            d_logits[i, j] = narrow(row[j] * weight - level, d_logits)
        d_logits[i, at] = narrow(wanted, d_logits)


@compiled(SUMS)
def absolute_sum(values):
    """`sum |v|` of a flat float32 array, added up in float64."""
    total = 0.0
    for j in range(values.shape[0]):
        total += np.float64(abs(values[j]))
    return total


@compiled(EXACT)
def ternary_codes(latent, inverse, codes):
    """`clip(round(w * inverse), -1, 1)` of flat arrays."""
    for j in range(latent.shape[0]):
        value = (latent[j] * inverse + ROUND) - ROUND
        codes[j] = np.int8(min(max(value, np.float32(-1.0)), _ONE))
