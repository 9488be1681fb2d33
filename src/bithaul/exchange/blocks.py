"""Codecs of whole numbers with scales: `int8-block-v1`, the default, `int4-block-v1` and `int8-ef-v1`.

Formats (little-endian), requirements.md §3 and exchange.md §7:

- `int8-block-v1`: magic BGB8, u32 count, u32 blocks, f16 scale[blocks], int8[count]; blocks of 1,024 values
  that never cross a tensor border, scales rounded up so that nothing clips.
- `int4-block-v1`: magic BGB4 and the same head; blocks of 256 values, two values in a byte, the first in the
  lower half, as whole numbers of four bits from -7 to 7.
- `int8-ef-v1`: magic BGEF, u32 count, f32 scale, int8[count]; one scale for the whole vector.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from bithaul.errors import CorruptFile
from bithaul.exchange.pieces import (
    CHUNK_VALUES,
    STRIP,
    Decoded,
    FloatVector,
    Piece,
    ScaledBytes,
    Values,
    VectorLayout,
    block_edges,
    check_count,
    check_vector,
    cut_pieces,
    not_finite,
    open_payload,
    read_exactly,
    strips,
)

_SMALLEST_NORMAL = np.float32(np.finfo(np.float32).tiny)
# The largest float32 below one half: adding one half itself would round 0.49999997 up.
_ALMOST_HALF = np.nextafter(np.float32(0.5), np.float32(0))


@dataclass(frozen=True)
class Blocks:
    """Each block of `width` values has its own fp16 scale; a value is off by at most half of it.

    `most` is the largest whole number a value becomes, 127 in a byte, 7 in half a byte.
    """

    name: str
    magic: bytes
    width: int
    most: int
    residual_decay: float
    lossless: bool = False

    @property
    def halves(self) -> bool:
        """Two values stand in a byte."""
        return self.most < 8

    def encoded_size(self, layout: VectorLayout) -> int:
        body = -(-layout.size // 2) if self.halves else layout.size
        return 12 + 2 * self._blocks(layout) + body

    def encode(self, vector: Values, layout: VectorLayout) -> bytearray:
        check_vector(vector, layout)
        blocks = self._blocks(layout)
        out = bytearray(self.encoded_size(layout))
        out[:12] = self.head(layout)
        scales = np.frombuffer(out, "<f2", blocks, 12)
        body = np.frombuffer(out, np.uint8, offset=12 + 2 * blocks)
        done = 0
        for offset, rows, width in strips(layout, self.width):
            strip = vector[offset : offset + rows * width].reshape(rows, width)
            scale = self.scales(strip)
            scales[done : done + rows] = scale
            q = self.quantised(strip, scale).reshape(-1)
            if self.halves:
                _put_halves(q, offset, body)
            else:
                body[offset : offset + q.size] = q.view(np.uint8)
            done += rows
        return out

    def head(self, layout: VectorLayout) -> bytes:
        """What stands before the scales."""
        return struct.pack("<4sII", self.magic, layout.size, self._blocks(layout))

    def scales(self, strip: Values) -> npt.NDArray[np.float16]:
        """float16 [rows] of whole blocks [rows, width]. Raises `InvalidInput`: `not_finite`."""
        scale = _half_scales(np.maximum(strip.max(axis=1), -strip.min(axis=1)), self.most)
        if not np.isfinite(scale).all():
            raise not_finite()
        return scale

    def quantised(self, strip: Values, scale: npt.NDArray[np.float16]) -> npt.NDArray[np.int8]:
        """int8 [rows, width]: whole numbers of each row's scale, one in a byte."""
        divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
        return _quantise(strip, divisor[:, None]).astype(np.int8)

    def pieces(
        self,
        file: BinaryIO,
        layout: VectorLayout,
        *,
        chunk_values: int = CHUNK_VALUES,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Piece]:
        base, head = open_payload(file, layout, self.encoded_size(layout), self.magic, 12)
        blocks = struct.unpack_from("<I", head, 8)[0]
        if blocks != self._blocks(layout):
            raise CorruptFile(
                f"The payload has {blocks} blocks, the layout {self._blocks(layout)}.", code="payload_count"
            )
        scales = np.frombuffer(read_exactly(file, 2 * blocks), "<f2").astype(np.float32)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise CorruptFile("A block's scale is not a finite number >= 0.", code="payload_scale")
        edges = block_edges(layout, self.width)
        body = base + 12 + 2 * blocks
        for offset, n in cut_pieces(layout, chunk_values, start, stop):
            first = int(np.searchsorted(edges, offset, side="right")) - 1
            last = int(np.searchsorted(edges, offset + n, side="left"))
            bounds = edges[first : last + 1] - offset
            bounds[0], bounds[-1] = 0, n  # a piece may begin and end inside a block
            q = _halves(file, body, offset, n) if self.halves else _bytes(file, body, offset, n)
            yield ScaledBytes(offset, q, scales[first:last], bounds)

    def _blocks(self, layout: VectorLayout) -> int:
        return sum(-(-t.size // self.width) for t in layout.tensors)


INT8_BLOCK = Blocks("int8-block-v1", b"BGB8", width=1024, most=127, residual_decay=1.0)
INT4_BLOCK = Blocks("int4-block-v1", b"BGB4", width=256, most=7, residual_decay=0.95)


def _bytes(file: BinaryIO, body: int, offset: int, count: int) -> npt.NDArray[np.int8]:
    file.seek(body + offset)
    return np.frombuffer(read_exactly(file, count), np.int8)


def _halves(file: BinaryIO, body: int, offset: int, count: int) -> npt.NDArray[np.int8]:
    first, last = offset // 2, -(-(offset + count) // 2)
    file.seek(body + first)
    pairs = np.frombuffer(read_exactly(file, last - first), np.int8)
    q = np.empty(2 * pairs.size, np.int8)
    q[0::2] = (pairs << 4) >> 4  # an arithmetic shift brings the sign back
    q[1::2] = pairs >> 4
    return q[offset % 2 : offset % 2 + count]


def _put_halves(q: npt.NDArray[np.int8], at: int, body: npt.NDArray[np.uint8]) -> None:
    """The values from place `at` on, two in a byte, the first in the lower half. `body` is zero there."""
    if at % 2:
        body[at // 2] |= (q[0].view(np.uint8) & np.uint8(15)) << 4
        q, at = q[1:], at + 1
    packed = pack_halves(q)
    body[at // 2 : at // 2 + packed.size] = packed


def pack_halves(q: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two in a byte, the first in the lower half; an unused half is 0."""
    halves = q.view(np.uint8) & np.uint8(15)
    low, high = halves[0::2], halves[1::2]
    packed = low.copy()
    packed[: high.size] |= high << 4
    return packed


@dataclass(frozen=True)
class Int8Ef:
    """scale = max|g| / 127, round half away from zero; the residual is the caller's `g - decode`."""

    name: str = "int8-ef-v1"
    lossless: bool = False
    residual_decay: float = 1.0
    magic: bytes = b"BGEF"

    def encoded_size(self, layout: VectorLayout) -> int:
        return 12 + layout.size

    def encode(self, vector: Values, layout: VectorLayout) -> bytearray:
        check_vector(vector, layout)
        largest = max(float(np.max(vector)), -float(np.min(vector))) if layout.size else 0.0
        if not np.isfinite(np.float32(largest)):
            raise not_finite()
        scale = np.float32(largest / 127)
        if largest > 0 and scale < _SMALLEST_NORMAL:
            scale = _SMALLEST_NORMAL  # a subnormal scale is too coarse: values would clip
        out = bytearray(self.encoded_size(layout))
        struct.pack_into("<4sIf", out, 0, self.magic, layout.size, scale)
        q = np.frombuffer(out, np.int8, layout.size, 12)
        if scale > 0:
            for i in range(0, layout.size, STRIP):
                q[i : i + STRIP] = _quantise(vector[i : i + STRIP], scale)
        return out

    def pieces(
        self,
        file: BinaryIO,
        layout: VectorLayout,
        *,
        chunk_values: int = CHUNK_VALUES,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Piece]:
        base, head = open_payload(file, layout, self.encoded_size(layout), self.magic, 12)
        count, scale = struct.unpack_from("<If", head, 4)
        check_count(count, layout)
        if not np.isfinite(scale) or scale < 0:
            raise CorruptFile(
                f"The payload's scale {scale} is not a finite number >= 0.", code="payload_scale"
            )
        for offset, n in cut_pieces(layout, chunk_values, start, stop):
            file.seek(base + 12 + offset)
            values = np.frombuffer(read_exactly(file, n), np.int8).astype(np.float32)
            with np.errstate(over="ignore"):
                values *= np.float32(scale)
            if not np.isfinite(values).all():
                raise CorruptFile("The payload holds values that are not finite.", code="payload_not_finite")
            yield Decoded(offset, values)


def _quantise(values: Values, scale: np.float32 | FloatVector) -> FloatVector:
    """values / scale, half rounded away from zero; the caller's assignment to int8 truncates."""
    steps = np.asarray(values / scale, np.float32)
    steps += np.copysign(_ALMOST_HALF, steps)
    return steps


def _half_scales(largest: Values, most: int) -> npt.NDArray[np.float16]:
    """largest / most as fp16, rounded up: no value of the block can be beyond `most` steps."""
    wanted = np.asarray(largest / np.float32(most), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = wanted.astype(np.float16)
        return np.where(scale.astype(np.float32) < wanted, np.nextafter(scale, np.float16(np.inf)), scale)
