"""`topk-2bit-v1`: of each chunk the 64th part with the largest values, a place and two bits for each.

Format (little-endian): magic BGK2, u32 count, u32 chunks, f16 levels[chunks][2], then the chunks one after
the other. A chunk is 4,096 values of one tensor; a tensor's last may be shorter. Of n values k = ceil(n / 64)
are kept, in the order of their places. Each is 14 bits: place in the chunk (12), sign (1: negative), level
(1: the second). They follow each other from the lowest bit of the first byte; the last byte of a chunk is
filled up with zeros.

The two levels are the mean sizes of the smaller and of the larger kept values. It needs the residual: 63 of
64 values are sent by a later update or never (arXiv:2508.15706).
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
    FloatVector,
    Piece,
    Values,
    VectorLayout,
    Wide,
    block_edges,
    check_vector,
    cut_pieces,
    not_finite,
    open_payload,
    read_exactly,
    strips,
)

CHUNK = 4096
ONE_OF = 64
_BITS = 14
_PLACE, _SIGN, _LEVEL = 0xFFF, 1 << 12, 1 << 13
_GROUP = 4  # entries that fill seven bytes

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SparsePiece:
    """`places` (int64 [kept], from the piece's begin, ascending) hold `kept` (float32), the others zero."""

    offset: int
    size: int
    places: Numbers
    kept: FloatVector

    def values(self) -> FloatVector:
        values = np.zeros(self.size, np.float32)
        values[self.places] = self.kept
        return values

    def add_to(self, total: Wide, factor: float, *, fresh: bool) -> None:
        if fresh:
            total.fill(0.0)
        total[self.places] += np.multiply(self.kept, factor, dtype=np.float64)

    def square(self) -> float:
        wide = self.kept.astype(np.float64)
        return float(np.einsum("i,i", wide, wide))


@dataclass(frozen=True)
class Places:
    """Where the chunks of a layout lie: `edges` in the vector, `ends` in the bytes, int64 [chunks + 1]."""

    edges: Numbers
    ends: Numbers

    @classmethod
    def of(cls, layout: VectorLayout) -> Places:
        edges = block_edges(layout, CHUNK)
        sizes = -(-_BITS * _kept(np.diff(edges)) // 8)
        return cls(edges, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))

    @property
    def chunks(self) -> int:
        return self.edges.size - 1


@dataclass(frozen=True)
class TopK:
    name: str = "topk-2bit-v1"
    lossless: bool = False
    residual_decay: float = 0.95
    magic: bytes = b"BGK2"

    def encoded_size(self, layout: VectorLayout) -> int:
        chunks = size = 0
        for tensor in layout.tensors:
            whole, tail = divmod(tensor.size, CHUNK)
            chunks += whole + (tail > 0)
            size += whole * _packed_size(CHUNK // ONE_OF) + _packed_size(-(-tail // ONE_OF))
        return 12 + 4 * chunks + size

    def encode(self, vector: Values, layout: VectorLayout) -> bytearray:
        check_vector(vector, layout)
        out = bytearray(self.encoded_size(layout))
        chunks = Places.of(layout).chunks
        struct.pack_into("<4sII", out, 0, self.magic, layout.size, chunks)
        levels = np.frombuffer(out, "<f2", 2 * chunks, 12).reshape(chunks, 2)
        body = np.frombuffer(out, np.uint8, offset=12 + 4 * chunks)
        done = at = 0
        for offset, rows, width in strips(layout, CHUNK):
            found, packed = _encode(vector[offset : offset + rows * width].reshape(rows, width))
            levels[done : done + rows] = found
            body[at : at + packed.size] = packed.reshape(-1)
            done, at = done + rows, at + packed.size
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
        chunks, places = struct.unpack_from("<I", head, 8)[0], Places.of(layout)
        if chunks != places.chunks:
            raise CorruptFile(
                f"The payload has {chunks} chunks, the layout {places.chunks}.", code="payload_count"
            )
        levels = np.frombuffer(read_exactly(file, 4 * chunks), "<f2").astype(np.float32).reshape(chunks, 2)
        if not (np.isfinite(levels).all() and (levels >= 0).all()):
            raise CorruptFile("A chunk's level is not a finite number >= 0.", code="payload_scale")
        body = base + 12 + 4 * chunks
        for offset, count in cut_pieces(layout, chunk_values, start, stop):
            first = int(np.searchsorted(places.edges, offset, side="right")) - 1
            last = int(np.searchsorted(places.edges, offset + count, side="left"))
            file.seek(body + int(places.ends[first]))
            data = read_exactly(file, int(places.ends[last] - places.ends[first]))
            where, kept = _decode(np.frombuffer(data, np.uint8), places, levels, first, last)
            inside = (where >= offset) & (where < offset + count)  # it may begin and end inside a chunk
            yield SparsePiece(offset, count, where[inside] - offset, kept[inside])


def _kept(sizes: Numbers) -> Numbers:
    return -(-sizes // ONE_OF)


def _packed_size(entries: int) -> int:
    return -(-_BITS * entries // 8)


def _encode(rows: Values) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """Levels [rows, 2] and packed entries [rows, bytes] of chunks of one size, [rows, values]."""
    sizes = np.abs(rows)
    if not np.isfinite(sizes.max(axis=1)).all():
        raise not_finite()
    width = rows.shape[1]
    kept = -(-width // ONE_OF)
    if kept < width:
        places = np.sort(np.argpartition(sizes, width - kept, axis=1)[:, width - kept :], axis=1)
    else:
        places = np.broadcast_to(np.arange(width), rows.shape)
    values = np.take_along_axis(rows, places, axis=1).astype(np.float32)
    large = np.abs(values)
    upper = large > (0.5 * (large.min(axis=1) + large.max(axis=1)))[:, None]
    levels = np.stack([_mean(large, ~upper), _mean(large, upper)], axis=1)
    with np.errstate(over="ignore"):
        halves = levels.astype(np.float16)
    if not np.isfinite(halves).all():
        raise not_finite()
    entries = places.astype(np.uint64)
    entries |= np.where(values < 0, np.uint64(_SIGN), np.uint64(0))
    entries |= np.where(upper, np.uint64(_LEVEL), np.uint64(0))
    return halves, _pack(entries)


def _mean(values: FloatVector, chosen: npt.NDArray[np.bool_]) -> FloatVector:
    """Of the chosen ones of each row, 0 for a row without."""
    count = chosen.sum(axis=1)
    total = np.where(chosen, values, np.float32(0)).sum(axis=1, dtype=np.float64)
    return np.asarray(total / np.maximum(count, 1), np.float32)


def _pack(entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    rows, count = entries.shape
    groups = -(-count // _GROUP)
    filled = np.zeros((rows, groups * _GROUP), np.uint64)
    filled[:, :count] = entries
    shifts = np.arange(_GROUP, dtype=np.uint64) * np.uint64(_BITS)
    words = np.bitwise_or.reduce(filled.reshape(rows, groups, _GROUP) << shifts, axis=2)
    packed = words.astype("<u8").view(np.uint8).reshape(rows, groups, 8)[:, :, :7].reshape(rows, groups * 7)
    return np.ascontiguousarray(packed[:, : _packed_size(count)])


def _unpack(packed: npt.NDArray[np.uint8], count: int) -> Numbers:
    """Entries [rows, count]. Raises `CorruptFile` when the filling is not zero."""
    rows, groups = packed.shape[0], -(-count // _GROUP)
    filled = np.zeros((rows, groups * 7), np.uint8)
    filled[:, : packed.shape[1]] = packed
    words = np.zeros((rows, groups, 8), np.uint8)
    words[:, :, :7] = filled.reshape(rows, groups, 7)
    shifts = np.arange(_GROUP, dtype=np.uint64) * np.uint64(_BITS)
    all_of = (words.view("<u8") >> shifts) & np.uint64((1 << _BITS) - 1)
    entries: Numbers = all_of.reshape(rows, groups * _GROUP).astype(np.int64)
    if entries[:, count:].any():
        raise CorruptFile("A chunk of the payload is not filled up with zeros.", code="payload_index")
    return entries[:, :count]


def _decode(
    data: npt.NDArray[np.uint8], places: Places, levels: FloatVector, first: int, last: int
) -> tuple[Numbers, FloatVector]:
    """Places in the vector and values of the chunks [first, last), whose bytes `data` holds."""
    sizes = np.diff(places.edges[first : last + 1])
    borders = np.flatnonzero(np.diff(sizes)) + 1  # runs of chunks of one size are read at once
    where, kept = [], []
    for begin, end in zip([0, *borders.tolist()], [*borders.tolist(), sizes.size], strict=True):
        lo, hi = first + begin, first + end
        packed = data[places.ends[lo] - places.ends[first] : places.ends[hi] - places.ends[first]]
        width = int(sizes[begin])
        entries = _unpack(packed.reshape(hi - lo, -1), -(-width // ONE_OF))
        place = entries & _PLACE
        if (place >= width).any() or (np.diff(place, axis=1) <= 0).any():
            raise CorruptFile(
                "The places in a chunk of the payload are not ascending within it.", code="payload_index"
            )
        level = np.take_along_axis(levels[lo:hi], (entries & _LEVEL) // _LEVEL, axis=1)
        where.append((place + places.edges[lo:hi, None]).reshape(-1))
        kept.append(np.where(entries & _SIGN, -level, level).reshape(-1))
    return np.concatenate(where), np.concatenate(kept)
