"""Codecs that send numbers as they are: `fp32-v1`, exact, and `bf16-v1`; the controls of experiments.

Formats (little-endian, no padding):

- `fp32-v1`: magic BGF4, u32 count, f32 high[count], f32 low[count]. The exact difference of two fp32 vectors
  as an unevaluated sum, because one fp32 number cannot hold it when a weight lands near zero.
- `bf16-v1`: magic BGBF, u32 count, u16 upper half of the fp32 value[count].
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from bithaul.errors import CorruptFile
from bithaul.exchange.bf16 import all_finite, from_bf16, to_bf16
from bithaul.exchange.pieces import (
    CHUNK_VALUES,
    STRIP,
    Decoded,
    Piece,
    Values,
    VectorLayout,
    check_count,
    check_vector,
    cut_pieces,
    not_finite,
    open_payload,
    read_exactly,
)


@dataclass(frozen=True)
class Fp32:
    """The exact difference of two fp32 vectors, each value as the sum of two numbers."""

    name: str = "fp32-v1"
    lossless: bool = True
    residual_decay: float = 1.0
    magic: bytes = b"BGF4"

    def encoded_size(self, layout: VectorLayout) -> int:
        return 8 + 8 * layout.size

    def encode(self, vector: Values, layout: VectorLayout) -> bytearray:
        check_vector(vector, layout)
        out = bytearray(self.encoded_size(layout))
        struct.pack_into("<4sI", out, 0, self.magic, layout.size)
        high = np.frombuffer(out, "<f4", layout.size, 8)
        low = np.frombuffer(out, "<f4", layout.size, 8 + 4 * layout.size)
        for i in range(0, layout.size, STRIP):
            exact = vector[i : i + STRIP].astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                high[i : i + STRIP] = exact
                low[i : i + STRIP] = exact - high[i : i + STRIP]
            if not np.isfinite(high[i : i + STRIP]).all():
                raise not_finite()
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
        base, head = open_payload(file, layout, self.encoded_size(layout), self.magic, 8)
        check_count(struct.unpack_from("<I", head, 4)[0], layout)
        for offset, count in cut_pieces(layout, chunk_values, start, stop):
            file.seek(base + 8 + 4 * offset)
            high = np.frombuffer(read_exactly(file, 4 * count), "<f4").astype(np.float64)
            file.seek(base + 8 + 4 * (layout.size + offset))
            with np.errstate(invalid="ignore"):
                high += np.frombuffer(read_exactly(file, 4 * count), "<f4")
            if not np.isfinite(high).all():
                raise CorruptFile("The payload holds values that are not finite.", code="payload_not_finite")
            yield Decoded(offset, high)


@dataclass(frozen=True)
class Bf16:
    """Each value rounded to bfloat16, half to even; a control for what coarser codecs cost."""

    name: str = "bf16-v1"
    lossless: bool = False
    residual_decay: float = 1.0
    magic: bytes = b"BGBF"

    def encoded_size(self, layout: VectorLayout) -> int:
        return 8 + 2 * layout.size

    def encode(self, vector: Values, layout: VectorLayout) -> bytearray:
        check_vector(vector, layout)
        out = bytearray(self.encoded_size(layout))
        struct.pack_into("<4sI", out, 0, self.magic, layout.size)
        words = np.frombuffer(out, "<u2", layout.size, 8)
        for i in range(0, layout.size, STRIP):
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.ascontiguousarray(vector[i : i + STRIP], np.float32)
            words[i : i + STRIP] = to_bf16(values)
            if not all_finite(words[i : i + STRIP]):
                raise not_finite()
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
        base, _ = open_payload(file, layout, self.encoded_size(layout), self.magic, 8)
        for offset, count in cut_pieces(layout, chunk_values, start, stop):
            file.seek(base + 8 + 2 * offset)
            words = np.frombuffer(read_exactly(file, 2 * count), "<u2")
            if not all_finite(words):
                raise CorruptFile("The payload holds values that are not finite.", code="payload_not_finite")
            yield Decoded(offset, from_bf16(words))
