"""Weight files: a version number and a vector, as stored in the blob store and fetched by workers.

`u32 magic | i64 version | u32 count | values[count]`, little-endian. The magic says how a value stands there:
`weights-v1` (0x54475742) holds float32, `weights-bf16-v1` (0x48475742) their bfloat16, half the bytes. A run
chooses one for what it publishes; what must lose nothing (the coordinator's own vectors, residuals) is always
`weights-v1`. Two more formats are bfloat16 files with a way from the version before, see `deltas`. Writing
streams and hashes; reading float32 maps the file, so a vector of 121M values costs no memory until it is
touched, while bfloat16 is widened in memory. Durability and names of files belong to the blob store. The
magics' numbers are the contract: their bytes on disk are "BWGT" and "BWGH".
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from bithaul.errors import CorruptFile, InvalidInput, UnknownName
from bithaul.exchange.bf16 import Words, all_finite, from_bf16, to_bf16

FloatVector = npt.NDArray[np.float32]

_HEAD = struct.Struct("<4sqI")
_PIECE = 1_048_576


@dataclass(frozen=True)
class WeightFormat:
    """`choice` is what a run says, `name` what both sides agree on at registration.

    `delta` is the codec of the deltas between its versions; None: every version is fetched whole.
    """

    choice: str
    name: str
    magic: bytes
    value_bytes: int
    delta: str | None = None

    def encode(self, values: FloatVector) -> memoryview:
        """The bytes of float32 [n]. Raises `InvalidInput` for what is not finite or beyond the format."""
        if self.value_bytes == 4:
            stored = np.ascontiguousarray(values, "<f4")
            finite = bool(np.isfinite(stored).all())
        else:
            words = to_bf16(np.ascontiguousarray(values, np.float32))
            stored, finite = words.astype("<u2", copy=False), all_finite(words)
        if not finite:
            raise InvalidInput(
                "The weights hold NaN, infinity or what their format cannot hold; they are not stored.",
                code="not_finite",
            )
        return stored.data.cast("B")


FP32 = WeightFormat("fp32", "weights-v1", (0x54475742).to_bytes(4, "little"), 4)
BF16 = WeightFormat("bf16", "weights-bf16-v1", (0x48475742).to_bytes(4, "little"), 2)
INT8_DELTA = WeightFormat("int8-delta", "weights-int8-delta-v1", BF16.magic, 2, "int8-block-v1")
INT4_DELTA = WeightFormat("int4-delta", "weights-int4-delta-v1", BF16.magic, 2, "int4-block-v1")
WEIGHTS: Mapping[str, WeightFormat] = MappingProxyType(
    {f.choice: f for f in (FP32, BF16, INT8_DELTA, INT4_DELTA)}
)
WEIGHT_FORMATS = tuple(f.name for f in WEIGHTS.values())  # names at registration
_BY_MAGIC = {f.magic: f for f in (FP32, BF16)}


def weights_named(choice: str) -> WeightFormat:
    """How a run publishes its weights; `UnknownName` lists the choices."""
    if choice not in WEIGHTS:
        raise UnknownName(f"Weights cannot be published as {choice!r}; choose {' or '.join(WEIGHTS)}.")
    return WEIGHTS[choice]


def format_named(name: str) -> WeightFormat:
    """The format that both sides agreed on; `UnknownName` lists the known ones."""
    found = next((form for form in WEIGHTS.values() if form.name == name), None)
    if found is None:
        raise UnknownName(f"There is no weight format {name!r}; known are {', '.join(WEIGHT_FORMATS)}.")
    return found


@dataclass(frozen=True)
class Weights:
    """`vector` is float32 [count], read-only."""

    version: int
    vector: FloatVector


def weights_size(count: int, form: WeightFormat = FP32) -> int:
    """Length in bytes of a file of `count` values."""
    return _HEAD.size + form.value_bytes * count


def weights_head(version: int, count: int, form: WeightFormat = FP32) -> bytes:
    """What stands before the values: for a writer that streams them itself, as the merger does."""
    return _HEAD.pack(form.magic, version, count)


def weights_pieces(
    version: int, vector: FloatVector, form: WeightFormat = FP32
) -> Iterator[bytes | memoryview]:
    """The file's bytes in pieces of at most 1 MiB. Raises `InvalidInput` for values that are not finite."""
    if vector.ndim != 1 or version < 0:
        raise InvalidInput(f"Version {version} with shape {vector.shape} is not a weight vector.")
    yield weights_head(version, vector.size, form)
    for i in range(0, vector.size, _PIECE // 4):
        yield form.encode(vector[i : i + _PIECE // 4])


def write_weights(stream: BinaryIO, version: int, vector: FloatVector, form: WeightFormat = FP32) -> str:
    """Write the file and return its SHA-256 (hex)."""
    digest = hashlib.sha256()
    for piece in weights_pieces(version, vector, form):
        digest.update(piece)
        stream.write(piece)
    return digest.hexdigest()


def read_weights(data: bytes | bytearray | memoryview, *, expected_count: int) -> Weights:
    """Weights from bytes; a float32 vector is a view into them. Raises `CorruptFile`."""
    version, form = _check(bytes(data[: _HEAD.size]), len(data), expected_count)
    if form is FP32:
        vector: FloatVector = np.frombuffer(data, "<f4", expected_count, _HEAD.size)
    else:
        vector = from_bf16(np.frombuffer(data, "<u2", expected_count, _HEAD.size))
    vector.flags.writeable = False
    return Weights(version, vector)


def open_weights(path: Path, *, expected_count: int) -> Weights:
    """Weights of a file, read-only: float32 mapped, bfloat16 widened in memory.

    Checks magic, count and exact length; raises `CorruptFile`.
    """
    version, form = _check_file(path, expected_count)
    if form is FP32:
        return Weights(version, np.memmap(path, np.dtype("<f4"), "r", _HEAD.size, (expected_count,)))
    vector = np.empty(expected_count, np.float32)
    words = _mapped(path, expected_count)
    for i in range(0, expected_count, _PIECE):
        vector[i : i + _PIECE] = from_bf16(words[i : i + _PIECE])
    vector.flags.writeable = False
    return Weights(version, vector)


def words_of(path: Path, *, expected_count: int) -> Words:
    """The values of a bfloat16 file as they stand there, mapped, uint16 [count]. Raises `CorruptFile`."""
    _, form = _check_file(path, expected_count)
    if form is not BF16:
        raise CorruptFile(f"{path.name} holds {form.name}, not {BF16.name}.", code="weights_magic")
    return _mapped(path, expected_count)


def _mapped(path: Path, count: int) -> Words:
    return np.memmap(path, np.dtype("<u2"), "r", _HEAD.size, (count,))


def _check_file(path: Path, expected_count: int) -> tuple[int, WeightFormat]:
    with path.open("rb") as file:
        return _check(file.read(_HEAD.size), path.stat().st_size, expected_count)


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


def _check(head: bytes, size: int, expected_count: int) -> tuple[int, WeightFormat]:
    """Version and format, once the head and the length fit `expected_count`."""
    if len(head) < _HEAD.size:
        raise CorruptFile(f"The weight file ends after {size} bytes, inside its head.", code="weights_short")
    magic, version, count = _HEAD.unpack(head)
    if magic not in _BY_MAGIC:
        known = " or ".join(str(m) for m in _BY_MAGIC)
        raise CorruptFile(f"The weight file begins with {magic!r}, not {known}.", code="weights_magic")
    form = _BY_MAGIC[magic]
    if version < 0:
        raise CorruptFile(f"The weight file has the version {version}.", code="weights_version")
    if count != expected_count:
        raise CorruptFile(
            f"The weight file holds {count} values, the layout {expected_count}.", code="weights_count"
        )
    if size != weights_size(count, form):
        raise CorruptFile(
            f"The weight file has {size} bytes, {count} values need {weights_size(count, form)}.",
            code="weights_length",
        )
    return int(version), form
