"""Binary shards: headerless little-endian int32 token ids, and an index of where each example begins.

`<name>.bin` is ids one after the other; `<name>.idx` is examples + 1 little-endian uint64 offsets counted in
tokens, from 0 to the number of tokens. A slice is made of whole examples. Opening with a `ShardInfo` verifies
lengths and SHA-256; opening without one trusts the bytes but still checks that the index fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from bithaul.corpus.files import sha256_of, write_bytes
from bithaul.errors import CorruptFile, InvalidInput, NotFound

TOKEN = np.dtype("<i4")
OFFSET = np.dtype("<u8")


class ShardInfo(BaseModel):
    """One shard: `id` names `<id>.bin` and `<id>.idx` in the folder of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    examples: int = Field(ge=0)
    tokens: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    index_bytes: int = Field(ge=0)
    index_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def write_shard(directory: Path, shard_id: str, examples: Sequence[Sequence[int]]) -> ShardInfo:
    """Write one shard and its index; returns what the manifest says about them."""
    offsets = np.zeros(len(examples) + 1, dtype=OFFSET)
    offsets[1:] = np.cumsum([len(example) for example in examples], dtype=np.uint64)
    flat = np.fromiter((t for example in examples for t in example), dtype=TOKEN, count=int(offsets[-1]))
    data, index = flat.tobytes(), offsets.tobytes()
    write_bytes(directory / f"{shard_id}.bin", data)
    write_bytes(directory / f"{shard_id}.idx", index)
    return ShardInfo(
        id=shard_id,
        examples=len(examples),
        tokens=len(flat),
        bytes=len(data),
        sha256=sha256_of(data),
        index_bytes=len(index),
        index_sha256=sha256_of(index),
    )


class Shard:
    """Read access to one shard; the ids stay on disk and are mapped into memory."""

    def __init__(self, tokens: NDArray[np.int32], offsets: NDArray[np.uint64]) -> None:
        self._tokens = tokens
        self._offsets = offsets

    @classmethod
    def open(cls, bin_path: Path, idx_path: Path, *, verify: ShardInfo | None = None) -> Shard:
        """Map a shard. NotFound for a missing file; CorruptFile when bytes, index or `verify` disagree."""
        for path in (bin_path, idx_path):
            if not path.is_file():
                raise NotFound(f"The corpus shard file {path} is missing; fetch or build the corpus again.")
        if verify is not None:
            _verify(bin_path, verify.bytes, verify.sha256)
            _verify(idx_path, verify.index_bytes, verify.index_sha256)
        size = bin_path.stat().st_size
        offsets = np.fromfile(idx_path, dtype=OFFSET)
        whole = size % TOKEN.itemsize == 0 and idx_path.stat().st_size == offsets.nbytes and len(offsets) > 0
        if not whole or offsets[0] != 0 or int(offsets[-1]) * TOKEN.itemsize != size or _falls(offsets):
            raise CorruptFile(f"{idx_path} does not describe {bin_path}; fetch or build the corpus again.")
        if verify is not None and (len(offsets) - 1, size // TOKEN.itemsize) != (
            verify.examples,
            verify.tokens,
        ):
            raise CorruptFile(f"{bin_path} does not have the examples its manifest says; build it again.")
        tokens = np.memmap(bin_path, dtype=TOKEN, mode="r") if size else np.zeros(0, dtype=TOKEN)
        return cls(tokens, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def tokens(self) -> int:
        return len(self._tokens)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, int64 [examples]."""
        return np.diff(self._offsets).astype(np.int64)

    def require_vocabulary(self, size: int) -> None:
        """Raises `CorruptFile` when a token id is outside a vocabulary of `size`."""
        if len(self._tokens) and not 0 <= int(self._tokens.min()) <= int(self._tokens.max()) < size:
            raise CorruptFile(
                f"A corpus shard holds tokens outside the vocabulary of {size}; build it again."
            )

    def example(self, i: int) -> NDArray[np.int32]:
        """The ids of example `i`, a copy."""
        if not 0 <= i < len(self):
            raise InvalidInput(f"Example {i} is outside this shard of {len(self)} examples.")
        first, last = int(self._offsets[i]), int(self._offsets[i + 1])
        return np.array(self._tokens[first:last], dtype=np.int32)

    def slice(self, first: int, count: int) -> list[NDArray[np.int32]]:
        """`count` whole examples from `first` on."""
        if first < 0 or count < 0 or first + count > len(self):
            raise InvalidInput(f"Examples {first} to {first + count} are outside this shard of {len(self)}.")
        return [self.example(i) for i in range(first, first + count)]


def targets_of(idx_path: Path, first: int, count: int) -> int:
    """Tokens that `count` examples from `first` on have a loss at: all but the first of each.

    Reads two offsets of the index. Raises `CorruptFile` where it ends before them.
    """
    with idx_path.open("rb") as file:
        offsets = []
        for place in (first, first + count):
            file.seek(place * OFFSET.itemsize)
            offset = file.read(OFFSET.itemsize)
            if len(offset) < OFFSET.itemsize:
                raise CorruptFile(f"{idx_path} ends before example {place}; build the corpus again.")
            offsets.append(int.from_bytes(offset, "little"))
    return offsets[1] - offsets[0] - count


def _falls(offsets: NDArray[np.uint64]) -> bool:
    return bool(np.any(offsets[1:] < offsets[:-1]))


def _verify(path: Path, size: int, sha256: str) -> None:
    if path.stat().st_size != size:
        raise CorruptFile(f"{path} has {path.stat().st_size} bytes instead of {size}; fetch it again.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise CorruptFile(f"{path} does not have the SHA-256 of its manifest; fetch it again.")
