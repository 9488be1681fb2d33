"""Weights v1: a version number and a float32 vector, as stored in the blob store and fetched by workers.

`u32 magic 0x54475742 | i64 version | u32 count | f32[count]`, little-endian. Writing streams and hashes;
reading maps the file, so a vector of 121M values costs no memory until it is touched. Durability and names of
files belong to the blob store. The magic's number is the contract: its bytes on disk are "BWGT".
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from bithaul.errors import CorruptFile, InvalidInput

FloatVector = npt.NDArray[np.float32]

WEIGHT_FORMAT = "weights-v1"
MAGIC = (0x54475742).to_bytes(4, "little")
_HEAD = struct.Struct("<4sqI")
_PIECE = 1_048_576


@dataclass(frozen=True)
class Weights:
    """`vector` is float32 [count], read-only."""

    version: int
    vector: FloatVector


def weights_size(count: int) -> int:
    """Length in bytes of a file of `count` values."""
    return _HEAD.size + 4 * count


def weights_head(version: int, count: int) -> bytes:
    """What stands before the values: for a writer that streams them itself, as the merger does."""
    return _HEAD.pack(MAGIC, version, count)


def weights_pieces(version: int, vector: FloatVector) -> Iterator[bytes | memoryview]:
    """The file's bytes in pieces of about 1 MiB. Raises `InvalidInput` for values that are not finite."""
    if vector.ndim != 1 or version < 0:
        raise InvalidInput(f"Version {version} with shape {vector.shape} is not a weight vector.")
    yield _HEAD.pack(MAGIC, version, vector.size)
    for i in range(0, vector.size, _PIECE // 4):
        piece = np.ascontiguousarray(vector[i : i + _PIECE // 4], "<f4")
        if not np.isfinite(piece).all():
            raise InvalidInput("The weights hold NaN or infinity; they are not stored.", code="not_finite")
        yield piece.data.cast("B")


def write_weights(stream: BinaryIO, version: int, vector: FloatVector) -> str:
    """Write the file and return its SHA-256 (hex)."""
    digest = hashlib.sha256()
    for piece in weights_pieces(version, vector):
        digest.update(piece)
        stream.write(piece)
    return digest.hexdigest()


def read_weights(data: bytes | bytearray | memoryview, *, expected_count: int) -> Weights:
    """Weights from bytes; the vector is a view into them. Raises `CorruptFile`."""
    version = _check(bytes(data[: _HEAD.size]), len(data), expected_count)
    vector = np.frombuffer(data, "<f4", expected_count, _HEAD.size)
    vector.flags.writeable = False
    return Weights(version, vector)


def open_weights(path: Path, *, expected_count: int) -> Weights:
    """Weights mapped from a file, read-only. Checks magic, count and exact length; raises `CorruptFile`."""
    with path.open("rb") as file:
        version = _check(file.read(_HEAD.size), path.stat().st_size, expected_count)
    return Weights(version, np.memmap(path, np.dtype("<f4"), "r", _HEAD.size, (expected_count,)))


def verify_weights(path: Path, *, expected_count: int, sha256: str) -> Weights:
    """`open_weights`, and the whole file has this SHA-256 and only finite values. Raises `CorruptFile`."""
    weights = open_weights(path, expected_count=expected_count)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise CorruptFile(
            f"{path} is damaged (SHA-256 {found[:12]}..., expected {sha256[:12]}...); "
            "restore it from a backup."
        )
    for i in range(0, expected_count, _PIECE):
        if not np.isfinite(weights.vector[i : i + _PIECE]).all():
            raise CorruptFile(f"{path.name} holds values that are not finite.", code="weights_not_finite")
    return weights


def _check(head: bytes, size: int, expected_count: int) -> int:
    """The version, once the head and the length fit `expected_count`."""
    if len(head) < _HEAD.size:
        raise CorruptFile(f"The weight file ends after {size} bytes, inside its head.", code="weights_short")
    magic, version, count = _HEAD.unpack(head)
    if magic != MAGIC:
        raise CorruptFile(f"The weight file begins with {magic!r}, not {MAGIC!r}.", code="weights_magic")
    if version < 0:
        raise CorruptFile(f"The weight file has the version {version}.", code="weights_version")
    if count != expected_count:
        raise CorruptFile(
            f"The weight file holds {count} values, the layout {expected_count}.", code="weights_count"
        )
    if size != weights_size(count):
        raise CorruptFile(
            f"The weight file has {size} bytes, {count} values need {weights_size(count)}.",
            code="weights_length",
        )
    return int(version)
