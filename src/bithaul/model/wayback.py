"""The two products on the way back through one stacked ternary product, a block of rows at a time.

Forward was y = (X T^t) f with f = g / s per row and matrix. One scaled copy of dy, d = f dy, serves both: the
gradient of the input over s is p = d T, that of a latent matrix dW = d^t X / g. The caller fills `block` with
d for some rows, `multiply` gives p while both are still in the cache, and after the last block
`weight_gradients` has every matrix. `FloatWay` multiplies in bf16 or fp32, `WordWay` in 16-bit integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bithaul.model import kernels, tiles
from bithaul.model.autograd import array_of
from bithaul.model.bitlinear import TernaryCodes
from bithaul.model.products import WORDS, StepPath
from bithaul.model.scratch import lasting, scratch

BLOCK_ROWS = 256


def blocks(rows: int) -> Iterator[slice]:
    """Rows in groups that the caches hold."""
    for start in range(0, rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, rows))


class WayBack(Protocol):
    """Arrays are float32, or uint16 holding the bits of bf16. `rows` is one of `blocks`."""

    def block(self, rows: slice) -> Any:
        """Memory for d of these rows, [rows, sum of N]."""
        ...

    def multiply(self, rows: slice) -> Any:
        """p [rows, K] of the block just filled, valid until the next call. Each row is given once."""
        ...

    def weight_gradients(self) -> list[Tensor]:
        """dW of each matrix, float32 [N, K], once every row has been given."""
        ...


def way_back(name: str, codes: Tensor, ternary: TernaryCodes, path: StepPath) -> WayBack:
    """For activations int8 [M, K]; `name` keeps the memory of ways that are open together apart."""
    if path.backward == WORDS:
        return WordWay(name, codes, ternary)
    return FloatWay(name, codes, ternary, path.gradient_dtype)


class FloatWay:
    def __init__(self, name: str, codes: Tensor, ternary: TernaryCodes, dtype: torch.dtype) -> None:
        self._name, self._codes, self._ternary, self._dtype = name, codes, ternary, dtype
        self._rows, self._width = codes.shape
        self._scaled = scratch(f"{name} scaled", (self._rows, sum(ternary.widths)), dtype)
        self._parts, self._array = torch.split(self._scaled, BLOCK_ROWS), array_of(self._scaled)
        self._weights = _converted(f"{name} codes", ternary.codes, dtype)

    def block(self, rows: slice) -> Any:
        return self._array[rows]

    def multiply(self, rows: slice) -> Any:
        part, shape = self._parts[rows.start // BLOCK_ROWS], (rows.stop - rows.start, self._width)
        return array_of(torch.mm(part, self._weights, out=scratch(f"{self._name} p", shape, self._dtype)))

    def weight_gradients(self) -> list[Tensor]:
        inputs = _converted("inputs", self._codes, self._dtype)
        shape = (self._scaled.shape[1], inputs.shape[1])
        product = torch.mm(self._scaled.t(), inputs, out=scratch("weights", shape, self._dtype))
        gradients = []
        widths, scales = list(self._ternary.widths), self._ternary.scales
        for part, g in zip(torch.split(product, widths), scales, strict=True):
            gradient = lasting(tuple(part.shape))
            kernels.widen_scaled(array_of(part), np.float32(1.0) / g, array_of(gradient))
            gradients.append(gradient)
        return gradients


class WordWay:
    """A block of d becomes 16-bit integers with one scale; both products are then exact."""

    def __init__(self, name: str, codes: Tensor, ternary: TernaryCodes) -> None:
        if ternary.words is None:
            raise ValueError("the codes were prepared for another path")
        self._name, self._codes, self._ternary = name, codes, ternary
        self._words = ternary.words.numpy()
        self._outputs, self._width = sum(ternary.widths), codes.shape[1]
        inverse = [
            np.full(n, np.float32(1.0) / g) for n, g in zip(ternary.widths, ternary.scales, strict=True)
        ]
        self._inverse: npt.NDArray[np.float32] = np.concatenate(inverse)
        self._sum = lasting((self._outputs, self._width))
        self._fresh = True  # nothing is in the sum yet
        self._block: Any = None

    def block(self, rows: slice) -> Any:
        self._block = array_of(scratch(f"{self._name} scaled", (rows.stop - rows.start, self._outputs)))
        return self._block

    def multiply(self, rows: slice) -> Any:
        from bithaul.model import integer  # compiled for machines with AVX2 only

        count, n, k = rows.stop - rows.start, self._outputs, self._width
        if self._block is None or len(self._block) != count:
            raise ValueError("fill the block of these rows first")
        if count > integer.MOST_ROWS:
            raise ValueError(f"a block of {count} rows would overflow; at most {integer.MOST_ROWS}")
        along = _words("along", (integer.panels(count, integer.ROWS), integer.panels(n, 2), integer.ROWS))
        across = _words("across", (integer.panels(n, integer.ROWS), integer.panels(count, 2), integer.ROWS))
        inputs = _words("inputs", (integer.panels(k, tiles.COLUMNS), across.shape[1], tiles.COLUMNS))
        scale = np.float32(integer.fixed_point(self._block, along, across))
        integer.pack_words(array_of(self._codes[rows]), inputs)
        integer.add_words(across, inputs, self._inverse * scale, self._fresh, array_of(self._sum))
        self._fresh, self._block = False, None
        p = array_of(scratch(f"{self._name} p", (count, k)))
        integer.multiply_words(along, self._words, scale, p)
        return p

    def weight_gradients(self) -> list[Tensor]:
        if self._fresh:  # there were no rows
            self._sum.zero_()
        return list(torch.split(self._sum, list(self._ternary.widths)))


def _words(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    found: npt.NDArray[np.int32] = scratch(name, shape, torch.int32).numpy()
    return found


def _converted(name: str, codes: Tensor, dtype: torch.dtype) -> Tensor:
    return scratch(name, tuple(codes.shape), dtype).copy_(codes)
