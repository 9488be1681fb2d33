"""Gradient codecs: a pseudo-gradient vector to bytes and back, chosen by name per run.

Every codec has a size that follows from the layout alone, refuses what it cannot carry, and checks magic,
count and length before it allocates anything. A payload is read in pieces, so a merger goes through several
in lock step without ever holding a vector of each; a piece adds itself to a sum in float64, which rounded to
float32 once keeps the closed loop exact to the bit. It does not know about frames, tasks or residuals.

Formats (little-endian, no padding), requirements.md §3 and exchange.md §7:

- `fp32-v1`: magic BGF4, u32 count, f32 high[count], f32 low[count]. The control: the exact difference of two
  fp32 vectors as an unevaluated sum, because one fp32 number cannot hold it when a weight lands near zero.
- `int8-ef-v1`: magic BGEF, u32 count, f32 scale, int8[count]; one scale for the whole vector.
- `int8-block-v1`: magic BGB8, u32 count, u32 blocks, f16 scale[blocks], int8[count]; blocks of 1,024 values
  that never cross a tensor border, scales rounded up so that nothing clips.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from os import SEEK_END
from types import MappingProxyType
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from bithaul.errors import CorruptFile, InvalidInput, LayoutMismatch, UnknownName

FloatVector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Values = FloatVector | Wide

CHUNK_VALUES = 4_194_304
BLOCK = 1024
_STRIP = 65_536  # values quantised at once: small enough to stay in a core's cache
_MAX_COUNT = 2**32 - 1
_SMALLEST_NORMAL = np.float32(np.finfo(np.float32).tiny)
# The largest float32 below one half: adding one half itself would round 0.49999997 up.
_ALMOST_HALF = np.nextafter(np.float32(0.5), np.float32(0))


class TensorPlace(Protocol):
    """Where one tensor lies in the vector; both numbers count values."""

    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...


class VectorLayout(Protocol):
    """What a codec must know of `model.layout.Layout`: gap-free tensors in order."""

    @property
    def size(self) -> int: ...
    @property
    def tensors(self) -> Sequence[TensorPlace]: ...


class Piece(Protocol):
    """Consecutive values of an update, still encoded; `offset` is the place of the first in the vector."""

    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...

    def values(self) -> Values:
        """float32 [size] of lossy codecs, float64 of lossless ones."""
        ...

    def add_to(self, total: Wide, factor: float, *, fresh: bool) -> None:
        """`total += factor * values` (`fresh`: `=`), each product and sum in float64."""
        ...

    def square(self) -> float:
        """Sum of the squares of the values, in float64."""
        ...


@dataclass(frozen=True)
class Decoded:
    """A piece whose values are there already."""

    offset: int
    decoded: Values

    @property
    def size(self) -> int:
        return self.decoded.size

    def values(self) -> Values:
        return self.decoded

    def add_to(self, total: Wide, factor: float, *, fresh: bool) -> None:
        if fresh:
            np.multiply(self.decoded, factor, out=total, dtype=np.float64)
        else:
            total += np.multiply(self.decoded, factor, dtype=np.float64)

    def square(self) -> float:
        wide = self.decoded.astype(np.float64, copy=False)
        return float(np.einsum("i,i", wide, wide))  # not BLAS: its threads would fight the workers


@dataclass(frozen=True)
class ScaledBytes:
    """int8 in blocks with a scale each: `bounds` (int64 [blocks + 1]) says where in `q` each begins."""

    offset: int
    q: npt.NDArray[np.int8]
    scales: FloatVector
    bounds: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        return self.q.size

    def values(self) -> FloatVector:
        values = self.q.astype(np.float32)
        values *= np.repeat(self.scales, self.bounds[1:] - self.bounds[:-1])
        return values

    def add_to(self, total: Wide, factor: float, *, fresh: bool) -> None:
        from bithaul.exchange import kernels  # compiled for those who merge, not for every command

        kernels.add_int8(self.q, self.scales, self.bounds, factor, fresh, total)

    def square(self) -> float:
        from bithaul.exchange import kernels

        return float(kernels.square_int8(self.q, self.scales, self.bounds))


class Codec(Protocol):
    """Three methods and a name. `lossless` codecs need no residual and take float64 differences."""

    @property
    def name(self) -> str: ...
    @property
    def lossless(self) -> bool: ...

    def encoded_size(self, layout: VectorLayout) -> int:
        """Exact payload length in bytes."""
        ...

    def encode(self, vector: Values, layout: VectorLayout) -> bytearray:
        """The payload. Raises `InvalidInput` (`not_finite`) for NaN, infinity or values beyond the format."""
        ...

    def pieces(
        self,
        file: BinaryIO,
        layout: VectorLayout,
        *,
        chunk_values: int = CHUNK_VALUES,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Piece]:
        """Pieces of [start, stop), in order, of at most `chunk_values`.

        The payload reaches from the file's current position to its end. Raises `CorruptFile` before the
        first piece when the payload is not exactly what `layout` asks for, and at the piece that holds a
        value that is not finite. No other generator may move the same file object meanwhile.
        """
        ...


def decode(codec: Codec, payload: bytes | bytearray | memoryview, layout: VectorLayout) -> FloatVector:
    """The whole vector as float32 [layout.size]."""
    pieces = codec.pieces(BytesIO(payload), layout)
    first = next(pieces, None)  # all checks run before the vector is allocated
    out = np.empty(layout.size, np.float32)
    for piece in chain([first] if first is not None else [], pieces):
        out[piece.offset : piece.offset + piece.size] = piece.values()
    return out


@dataclass(frozen=True)
class Fp32:
    name: str = "fp32-v1"
    lossless: bool = True
    magic: bytes = b"BGF4"

    def encoded_size(self, layout: VectorLayout) -> int:
        return 8 + 8 * layout.size

    def encode(self, vector: Values, layout: VectorLayout) -> bytearray:
        _check_vector(vector, layout)
        out = bytearray(self.encoded_size(layout))
        struct.pack_into("<4sI", out, 0, self.magic, layout.size)
        high = np.frombuffer(out, "<f4", layout.size, 8)
        low = np.frombuffer(out, "<f4", layout.size, 8 + 4 * layout.size)
        for i in range(0, layout.size, _STRIP):
            exact = vector[i : i + _STRIP].astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                high[i : i + _STRIP] = exact
                low[i : i + _STRIP] = exact - high[i : i + _STRIP]
            if not np.isfinite(high[i : i + _STRIP]).all():
                raise _not_finite()
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
        base, head = _open(file, layout, self.encoded_size(layout), self.magic, 8)
        _check_count(struct.unpack_from("<I", head, 4)[0], layout)
        for offset, count in _pieces(layout, chunk_values, start, stop):
            file.seek(base + 8 + 4 * offset)
            high = np.frombuffer(_read(file, 4 * count), "<f4").astype(np.float64)
            file.seek(base + 8 + 4 * (layout.size + offset))
            with np.errstate(invalid="ignore"):
                high += np.frombuffer(_read(file, 4 * count), "<f4")
            if not np.isfinite(high).all():
                raise CorruptFile("The payload holds values that are not finite.", code="payload_not_finite")
            yield Decoded(offset, high)


@dataclass(frozen=True)
class Int8Ef:
    """scale = max|g| / 127, round half away from zero; the residual is the caller's `g - decode`."""

    name: str = "int8-ef-v1"
    lossless: bool = False
    magic: bytes = b"BGEF"

    def encoded_size(self, layout: VectorLayout) -> int:
        return 12 + layout.size

    def encode(self, vector: Values, layout: VectorLayout) -> bytearray:
        _check_vector(vector, layout)
        largest = max(float(np.max(vector)), -float(np.min(vector))) if layout.size else 0.0
        if not np.isfinite(np.float32(largest)):
            raise _not_finite()
        scale = np.float32(largest / 127)
        if largest > 0 and scale < _SMALLEST_NORMAL:
            scale = _SMALLEST_NORMAL  # a subnormal scale is too coarse: values would clip
        out = bytearray(self.encoded_size(layout))
        struct.pack_into("<4sIf", out, 0, self.magic, layout.size, scale)
        q = np.frombuffer(out, np.int8, layout.size, 12)
        if scale > 0:
            for i in range(0, layout.size, _STRIP):
                q[i : i + _STRIP] = _quantise(vector[i : i + _STRIP], scale)
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
        base, head = _open(file, layout, self.encoded_size(layout), self.magic, 12)
        count, scale = struct.unpack_from("<If", head, 4)
        _check_count(count, layout)
        if not np.isfinite(scale) or scale < 0:
            raise CorruptFile(
                f"The payload's scale {scale} is not a finite number >= 0.", code="payload_scale"
            )
        for offset, n in _pieces(layout, chunk_values, start, stop):
            file.seek(base + 12 + offset)
            values = np.frombuffer(_read(file, n), np.int8).astype(np.float32)
            with np.errstate(over="ignore"):
                values *= np.float32(scale)
            if not np.isfinite(values).all():
                raise CorruptFile("The payload holds values that are not finite.", code="payload_not_finite")
            yield Decoded(offset, values)


@dataclass(frozen=True)
class Int8Block:
    """Each block of 1,024 values has its own fp16 scale; a value is off by at most half of it."""

    name: str = "int8-block-v1"
    lossless: bool = False
    magic: bytes = b"BGB8"

    def encoded_size(self, layout: VectorLayout) -> int:
        return 12 + 2 * _block_count(layout) + layout.size

    def encode(self, vector: Values, layout: VectorLayout) -> bytearray:
        _check_vector(vector, layout)
        blocks = _block_count(layout)
        out = bytearray(self.encoded_size(layout))
        struct.pack_into("<4sII", out, 0, self.magic, layout.size, blocks)
        scales = np.frombuffer(out, "<f2", blocks, 12)
        q = np.frombuffer(out, np.int8, layout.size, 12 + 2 * blocks)
        done = 0
        for offset, rows, width in _strips(layout):
            strip = vector[offset : offset + rows * width].reshape(rows, width)
            scale = _half_scales(np.maximum(strip.max(axis=1), -strip.min(axis=1)))
            if not np.isfinite(scale).all():
                raise _not_finite()
            scales[done : done + rows] = scale
            divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
            q[offset : offset + rows * width].reshape(rows, width)[:] = _quantise(strip, divisor[:, None])
            done += rows
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
        base, head = _open(file, layout, self.encoded_size(layout), self.magic, 12)
        count, blocks = struct.unpack_from("<II", head, 4)
        _check_count(count, layout)
        if blocks != _block_count(layout):
            raise CorruptFile(
                f"The payload has {blocks} blocks, the layout {_block_count(layout)}.", code="payload_count"
            )
        scales = np.frombuffer(_read(file, 2 * blocks), "<f2").astype(np.float32)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise CorruptFile("A block's scale is not a finite number >= 0.", code="payload_scale")
        edges = _block_edges(layout)
        places = list(_pieces(layout, chunk_values, start, stop))
        begins, counts = np.array(places, np.int64).reshape(-1, 2).T
        firsts = (np.searchsorted(edges, begins, side="right") - 1).tolist()
        lasts = np.searchsorted(edges, begins + counts, side="left").tolist()
        file.seek(base + 12 + 2 * blocks + start)
        for (offset, n), first, last in zip(places, firsts, lasts, strict=True):
            q = np.frombuffer(_read(file, n), np.int8)
            bounds = edges[first : last + 1] - offset
            bounds[0], bounds[-1] = 0, n  # a piece may begin and end inside a block
            yield ScaledBytes(offset, q, scales[first:last], bounds)


CODECS: Mapping[str, Codec] = MappingProxyType({c.name: c for c in (Int8Block(), Int8Ef(), Fp32())})


def codec_named(name: str) -> Codec:
    """The codec of that name; `UnknownName` lists the known ones."""
    if name not in CODECS:
        raise UnknownName(f"There is no codec {name!r}; the codecs are {', '.join(CODECS)}.")
    return CODECS[name]


def _check_vector(vector: Values, layout: VectorLayout) -> None:
    if vector.shape != (layout.size,):
        raise LayoutMismatch(f"The vector has shape {vector.shape}, the layout {layout.size} values.")
    if layout.size > _MAX_COUNT:
        raise InvalidInput(f"A payload holds at most {_MAX_COUNT} values, the layout has {layout.size}.")


def _not_finite() -> InvalidInput:
    return InvalidInput(
        "The update holds NaN, infinity or a value beyond the codec's range; it cannot be sent.",
        code="not_finite",
    )


def _open(file: BinaryIO, layout: VectorLayout, size: int, magic: bytes, head_size: int) -> tuple[int, bytes]:
    """(payload start, head). The length is compared before the first byte of the body is read."""
    base = file.tell()
    length = file.seek(0, SEEK_END) - base
    file.seek(base)
    if length < head_size:
        raise CorruptFile(f"The payload ends after {length} bytes, inside its head.", code="payload_short")
    head = _read(file, head_size)
    if head[:4] != magic:
        raise CorruptFile(f"The payload begins with {head[:4]!r}, not {magic!r}.", code="payload_magic")
    _check_count(int.from_bytes(head[4:8], "little"), layout)
    if length != size:
        raise CorruptFile(
            f"The payload has {length} bytes, the layout asks for {size}.", code="payload_length"
        )
    return base, head


def _check_count(count: int, layout: VectorLayout) -> None:
    if count != layout.size:
        raise CorruptFile(
            f"The payload holds {count} values, the layout {layout.size}.", code="payload_count"
        )


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise CorruptFile(f"The payload ended {size - len(data)} bytes early.", code="payload_short")
    return data


def _pieces(
    layout: VectorLayout, chunk_values: int, start: int, stop: int | None
) -> Iterator[tuple[int, int]]:
    stop = layout.size if stop is None else stop
    if chunk_values < 1 or not 0 <= start <= stop <= layout.size:
        raise ValueError(f"no such piece: {start}..{stop} by {chunk_values} of {layout.size}")
    for offset in range(start, stop, chunk_values):
        yield offset, min(chunk_values, stop - offset)


def _quantise(values: Values, scale: np.float32 | FloatVector) -> FloatVector:
    """values / scale, half rounded away from zero; the caller's assignment to int8 truncates."""
    steps = np.asarray(values / scale, np.float32)
    steps += np.copysign(_ALMOST_HALF, steps)
    return steps


def _half_scales(largest: Values) -> npt.NDArray[np.float16]:
    """largest / 127 as fp16, rounded up: no value of the block can be beyond 127 steps."""
    wanted = np.asarray(largest / np.float32(127), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = wanted.astype(np.float16)
        return np.where(scale.astype(np.float32) < wanted, np.nextafter(scale, np.float16(np.inf)), scale)


def _block_count(layout: VectorLayout) -> int:
    return sum(-(-t.size // BLOCK) for t in layout.tensors)


def _block_edges(layout: VectorLayout) -> npt.NDArray[np.int64]:
    """Where each block begins, and the end of the last; int64 [blocks + 1]."""
    starts = [np.arange(t.offset, t.offset + t.size, BLOCK, dtype=np.int64) for t in layout.tensors]
    return np.concatenate([*starts, np.array([layout.size], np.int64)])


def _strips(layout: VectorLayout) -> Iterator[tuple[int, int, int]]:
    """(offset, rows, width): groups of whole blocks, then each tensor's shorter last block."""
    rows_at_once = _STRIP // BLOCK
    for tensor in layout.tensors:
        whole = tensor.size // BLOCK
        for row in range(0, whole, rows_at_once):
            yield tensor.offset + row * BLOCK, min(rows_at_once, whole - row), BLOCK
        if tail := tensor.size - whole * BLOCK:
            yield tensor.offset + whole * BLOCK, 1, tail
