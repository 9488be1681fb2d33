"""Integer matrix products for machines with AVX2, in blocks of `tiles`: exact forward, 16-bit gradients.

The forward product multiplies int8 activations by `T + 1` and takes the sum of the row off again: the exact
sums. On the way back a block of gradients is rounded to 16 bits with one scale (`fixed_point`), after which
both products are exact integers too: against `T` for the inputs, against the int8 activations for the
weights. So the only error of the way back is 2^-16 of a block's largest gradient.

Layouts. A right operand is a row of panels of 16 columns; a panel holds, step by step, the 4 bytes of each
column: four codes or two numbers of 16 bits. A left operand of 16 bits is panels of 6 rows, step by step the
4 bytes of each row. Panels are filled up with zeros.
"""

from __future__ import annotations

import numpy as np

from bithaul.compiled import EXACT, compiled
from bithaul.model.kernels import ROUND, largest_size
from bithaul.model.tiles import BYTE_STEPS, COLUMNS, tile

ROWS = 6
"""Rows of a left panel."""

MOST_ROWS = 512
"""Rows of a block of gradients, kept by the caller: 512 * 128 * 32,767 fits into 32 bits, 513 do not."""

_LARGEST = np.float32(32767.0)
_FLOOR, _MOST_FINITE = np.float32(1e-30), np.float32(3.4e38)
_CACHED_STEPS = 128  # of 256 columns: 128 KiB, a quarter of a second-level cache

_bytes, _bytes_of_row = tile(ROWS, "bytes"), tile(1, "bytes")
_words = tile(ROWS, "words")


def panels(length: int, size: int) -> int:
    return -(-length // size)


@compiled(EXACT)
def pack_codes(codes, packed):
    """int8 codes [N, K] to the right operand of `multiply_codes`: `T + 1`, uint8 [panels, steps, 16, 4]."""
    for panel in range(packed.shape[0]):
        for step in range(packed.shape[1]):
            for column in range(COLUMNS):
                n = panel * COLUMNS + column
                for part in range(4):
                    k = step * 4 + part
                    inside = n < codes.shape[0] and k < codes.shape[1]
                    packed[panel, step, column, part] = np.uint8(codes[n, k] + 1) if inside else np.uint8(0)


@compiled(EXACT)
def multiply_codes(x, packed, out):
    """int8 activations [M, K] by packed codes: exact sums int32 [M, N]."""
    rows, width, steps = x.shape[0], x.shape[1], x.shape[1] // 4
    panel_bytes = packed.shape[1] * COLUMNS * 4
    sums, less = np.empty((ROWS, COLUMNS), np.int32), np.empty(rows, np.int32)
    for i in range(rows):
        total = np.int32(0)
        for k in range(width):
            total += np.int32(x[i, k])
        less[i] = total
    whole = rows - rows % ROWS
    for panel in range(packed.shape[0]):
        for start in range(0, whole, ROWS):
            sums[:] = 0
            for step in range(0, steps, BYTE_STEPS):
                at, count = panel * panel_bytes + step * COLUMNS * 4, min(BYTE_STEPS, steps - step)
                _bytes(x, start * width + step * 4, width, 4, packed, at, count, sums)
            _finish_codes(x, packed, panel, start, ROWS, sums, less, out)
        for start in range(whole, rows):
            sums[0] = 0
            for step in range(0, steps, BYTE_STEPS):
                at, count = panel * panel_bytes + step * COLUMNS * 4, min(BYTE_STEPS, steps - step)
                _bytes_of_row(x, start * width + step * 4, width, 4, packed, at, count, sums)
            _finish_codes(x, packed, panel, start, 1, sums, less, out)


@compiled(EXACT)
def _finish_codes(x, packed, panel, start, rows, sums, less, out):
    """Adds the inputs beyond the last whole group of four, takes the row's sum off, and stores."""
    first, columns = panel * COLUMNS, min(COLUMNS, out.shape[1] - panel * COLUMNS)
    for r in range(rows):
        i = start + r
        for k in range(x.shape[1] - x.shape[1] % 4, x.shape[1]):
            for j in range(COLUMNS):
                sums[r, j] += np.int32(x[i, k]) * np.int32(packed[panel, k // 4, j, k % 4])
        for j in range(columns):
            out[i, first + j] = sums[r, j] - less[i]


@compiled(EXACT)
def _pair(low, high):
    """Two numbers of 16 bits, the first in the lower half of 32."""
    return (np.int32(low) & np.int32(0xFFFF)) | np.int32(np.int32(high) << np.int32(16))


@compiled(EXACT)
def pack_words(values, packed):
    """int8 [P, J] to a right operand of 16-bit pairs, int32 [panels, P / 2, 16]: columns J, summed over P."""
    length = values.shape[0]
    for panel in range(packed.shape[0]):
        first, columns = panel * COLUMNS, min(COLUMNS, values.shape[1] - panel * COLUMNS)
        for pair in range(packed.shape[1]):
            p, out = 2 * pair, packed[panel, pair]
            row = values[p, first : first + columns]
            if p + 1 < length:
                following = values[p + 1, first : first + columns]
                for j in range(columns):
                    out[j] = _pair(row[j], following[j])
            else:
                for j in range(columns):
                    out[j] = _pair(row[j], 0)
            for j in range(columns, COLUMNS):
                out[j] = 0


@compiled(EXACT)
def fixed_point(values, along, across):
    """float32 [M, N] to 16 bits in both left layouts; returns the scale, `values = scale * integers`.

    Pairs of 16 bits: `along` int32 [panels of M, N / 2, 6] is summed over N, `across` int32 [panels of N,
    M / 2, 6] over M. A value that is not finite makes the scale NaN.
    """
    rows, width = values.shape
    top = _FLOOR
    for i in range(rows):
        size = largest_size(values[i])
        if not size <= _MOST_FINITE:
            return np.float32(np.nan)
        top = max(top, size)
    inverse = _LARGEST / top
    padded = max(2 * along.shape[1], across.shape[0] * ROWS)
    row, following = np.zeros(padded, np.int32), np.zeros(padded, np.int32)
    both = np.zeros(padded, np.int32)
    for pair in range(across.shape[1]):
        i = 2 * pair
        _round_row(values[i], inverse, row)
        _spread_along(row, i, along)
        if i + 1 < rows:
            _round_row(values[i + 1], inverse, following)
            _spread_along(following, i + 1, along)
        else:
            following[:] = 0
        for j in range(width):
            both[j] = _pair(row[j], following[j])
        for panel in range(across.shape[0]):
            out = across[panel, pair]
            for r in range(ROWS):
                out[r] = both[panel * ROWS + r]
    for i in range(rows, along.shape[0] * ROWS):
        along[i // ROWS, :, i % ROWS] = 0
    return top / _LARGEST


@compiled(EXACT)
def _round_row(values, inverse, row):
    for j in range(values.shape[0]):
        row[j] = np.int32((values[j] * inverse + ROUND) - ROUND)


@compiled(EXACT)
def _spread_along(row, i, along):
    out, r = along[i // ROWS], i % ROWS
    for step in range(out.shape[0]):
        out[step, r] = _pair(row[2 * step], row[2 * step + 1])


@compiled(EXACT)
def multiply_words(left, right, scale, out):
    """`out = scale * left . right`: float32 [I, J] of panels of 16-bit pairs."""
    sums = np.empty((ROWS, COLUMNS), np.int32)
    for step in range(0, left.shape[1], _CACHED_STEPS):
        count = min(_CACHED_STEPS, left.shape[1] - step)
        for upper in range(left.shape[0]):
            for panel in range(right.shape[0]):
                _block_of_words(left, upper, right, panel, step, count, sums)
                first, columns = panel * COLUMNS, min(COLUMNS, out.shape[1] - panel * COLUMNS)
                for r in range(min(ROWS, out.shape[0] - upper * ROWS)):
                    _store(sums[r], scale, step == 0, out[upper * ROWS + r, first : first + columns])


@compiled(EXACT)
def add_words(left, right, scales, fresh, out):
    """`out += scales[i] * left . right`, float32 [I, J] with a scale for each row; `fresh` overwrites."""
    sums = np.empty((ROWS, COLUMNS), np.int32)
    for upper in range(left.shape[0]):
        for panel in range(right.shape[0]):
            _block_of_words(left, upper, right, panel, 0, left.shape[1], sums)
            first, columns = panel * COLUMNS, min(COLUMNS, out.shape[1] - panel * COLUMNS)
            for r in range(min(ROWS, out.shape[0] - upper * ROWS)):
                i = upper * ROWS + r
                _store(sums[r], scales[i], fresh, out[i, first : first + columns])


@compiled(EXACT)
def _store(sums, scale, fresh, row):
    if fresh:
        for j in range(row.shape[0]):
            row[j] = np.float32(sums[j]) * scale
    else:
        for j in range(row.shape[0]):
            row[j] += np.float32(sums[j]) * scale


@compiled(EXACT)
def _block_of_words(left, upper, right, panel, step, count, sums):
    at = upper * left.shape[1] + step
    against = panel * right.shape[1] + step
    _words(left, at * ROWS * 4, 4, ROWS * 4, right, against * COLUMNS * 4, count, sums)
