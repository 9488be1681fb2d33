"""Loops over encoded updates: each reads a byte and never writes the decoded vector to memory.

The plain definitions are the `values` of the pieces in `codecs`; sums here run in float64, in order.
"""

from __future__ import annotations

import numpy as np

from bithaul.compiled import EXACT, STRICT, compiled
from bithaul.kernels import square_distance


@compiled(STRICT)
def add_int8(q, scales, bounds, factor, fresh, total):
    """`total += factor * scale * q`: int8 [n], a scale for each block; `bounds` [blocks + 1] cuts them.

    `fresh`: nothing is in `total` yet.
    """
    for b in range(scales.shape[0]):
        part = q[bounds[b] : bounds[b + 1]]
        if fresh:
            _write_block(part, scales[b], factor, total[bounds[b] : bounds[b + 1]])
        else:
            _add_block(part, scales[b], factor, total[bounds[b] : bounds[b + 1]])


@compiled(STRICT)
def _write_block(q, scale, factor, total):
    for j in range(q.shape[0]):
        total[j] = factor * np.float64(np.float32(q[j]) * scale)


@compiled(STRICT)
def _add_block(q, scale, factor, total):
    for j in range(q.shape[0]):
        total[j] += factor * np.float64(np.float32(q[j]) * scale)


@compiled(STRICT)
def move_int8(q, scales, bounds, factor, rate, theta, new):
    """`new = theta - rate * (factor * scale * q)`, to the bit what `add_int8` and a plain step give.

    In one pass: nothing is written but the result. Returns |new - theta|^2.
    """
    square = np.float64(0.0)
    for b in range(scales.shape[0]):
        begin, end = bounds[b], bounds[b + 1]
        _move_block(q[begin:end], scales[b], factor, rate, theta[begin:end], new[begin:end])
        square += square_distance(theta[begin:end], new[begin:end])
    return square


@compiled(STRICT)
def _move_block(q, scale, factor, rate, theta, new):
    for j in range(q.shape[0]):
        combined = factor * np.float64(np.float32(q[j]) * scale)
        new[j] = np.float32(np.float64(theta[j]) - rate * combined)


@compiled(EXACT)
def square_int8(q, scales, bounds):
    """Sum of squares of `scale * q`; those of a block's integers are exact."""
    total = np.float64(0.0)
    for b in range(scales.shape[0]):
        scale = np.float64(scales[b])
        total += scale * scale * np.float64(_square(q[bounds[b] : bounds[b + 1]]))
    return total


@compiled(EXACT)
def _square(q):
    total = np.int64(0)
    for j in range(q.shape[0]):
        total += np.int32(q[j]) * np.int32(q[j])
    return total
