"""What all codecs of updates share: their protocol, the pieces a payload is read in, the checks before it.

A payload is read in pieces, so a merger goes through several in lock step without ever holding a vector of
each; a piece adds itself to a sum in float64, which rounded to float32 once keeps the closed loop exact to
the bit. Magic, count and length are checked before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import SEEK_END
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from bithaul.errors import CorruptFile, InvalidInput, LayoutMismatch

FloatVector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Values = FloatVector | Wide

CHUNK_VALUES = 4_194_304
STRIP = 65_536  # values encoded at once: small enough to stay in a core's cache
MOST_VALUES = 2**32 - 1


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

    def move(self, theta: FloatVector, factor: float, rate: float, new: FloatVector) -> float:
        """`add_to` and a plain step in one: `new = theta - rate * (factor * values)`; |new - theta|^2."""
        from bithaul.exchange import kernels

        return float(kernels.move_int8(self.q, self.scales, self.bounds, factor, rate, theta, new))

    def square(self) -> float:
        from bithaul.exchange import kernels

        return float(kernels.square_int8(self.q, self.scales, self.bounds))


class Codec(Protocol):
    """`lossless` codecs need no residual and take float64 differences."""

    @property
    def name(self) -> str: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def residual_decay(self) -> float:
        """How much of what an update left out is added to the next; 1.0 keeps all of it."""
        ...

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


def check_vector(vector: Values, layout: VectorLayout) -> None:
    if vector.shape != (layout.size,):
        raise LayoutMismatch(f"The vector has shape {vector.shape}, the layout {layout.size} values.")
    if layout.size > MOST_VALUES:
        raise InvalidInput(f"A payload holds at most {MOST_VALUES} values, the layout has {layout.size}.")


def not_finite() -> InvalidInput:
    return InvalidInput(
        "The update holds NaN, infinity or a value beyond the codec's range; it cannot be sent.",
        code="not_finite",
    )


def open_payload(
    file: BinaryIO, layout: VectorLayout, size: int, magic: bytes, head_size: int
) -> tuple[int, bytes]:
    """(payload start, head). The length is compared before the first byte of the body is read."""
    base = file.tell()
    length = file.seek(0, SEEK_END) - base
    file.seek(base)
    if length < head_size:
        raise CorruptFile(f"The payload ends after {length} bytes, inside its head.", code="payload_short")
    head = read_exactly(file, head_size)
    if head[:4] != magic:
        raise CorruptFile(f"The payload begins with {head[:4]!r}, not {magic!r}.", code="payload_magic")
    check_count(int.from_bytes(head[4:8], "little"), layout)
    if length != size:
        raise CorruptFile(
            f"The payload has {length} bytes, the layout asks for {size}.", code="payload_length"
        )
    return base, head


def check_count(count: int, layout: VectorLayout) -> None:
    if count != layout.size:
        raise CorruptFile(
            f"The payload holds {count} values, the layout {layout.size}.", code="payload_count"
        )


def read_exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise CorruptFile(f"The payload ended {size - len(data)} bytes early.", code="payload_short")
    return data


def cut_pieces(
    layout: VectorLayout, chunk_values: int, start: int, stop: int | None
) -> Iterator[tuple[int, int]]:
    stop = layout.size if stop is None else stop
    if chunk_values < 1 or not 0 <= start <= stop <= layout.size:
        raise ValueError(f"no such piece: {start}..{stop} by {chunk_values} of {layout.size}")
    for offset in range(start, stop, chunk_values):
        yield offset, min(chunk_values, stop - offset)


def block_edges(layout: VectorLayout, width: int) -> npt.NDArray[np.int64]:
    """Where each block begins, and the end of the last; int64 [blocks + 1]."""
    starts = [np.arange(t.offset, t.offset + t.size, width, dtype=np.int64) for t in layout.tensors]
    return np.concatenate([*starts, np.array([layout.size], np.int64)])


def strips(layout: VectorLayout, block: int) -> Iterator[tuple[int, int, int]]:
    """(offset, rows, width): groups of whole blocks, then each tensor's shorter last block."""
    rows_at_once = STRIP // block
    for tensor in layout.tensors:
        whole = tensor.size // block
        for row in range(0, whole, rows_at_once):
            yield tensor.offset + row * block, min(rows_at_once, whole - row), block
        if tail := tensor.size - whole * block:
            yield tensor.offset + whole * block, 1, tail
