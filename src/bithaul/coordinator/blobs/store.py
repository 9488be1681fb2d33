"""The blob store as the coordinator sees it: immutable files named by their SHA-256.

Promises: a blob that can be opened is complete and was synced before its name existed; the same bytes are
stored once; nothing half-written is ever visible. Which blobs are still wanted is decided by the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class BlobRef:
    """A complete blob. `path` is for reading only."""

    path: Path
    sha256: str
    size: int


@dataclass(frozen=True)
class UploadedFile:
    """A complete, fsynced file in the incoming area, not yet a blob."""

    path: Path
    size: int
    sha256: str


class Incoming(Protocol):
    """A file being received. Use as a context manager: left without `finish`, it is deleted."""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        ...

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append. Raises `OutOfDisk`."""
        ...

    def finish(self) -> UploadedFile:
        """Flush, fsync and close. Raises `OutOfDisk`; then nothing is left behind."""
        ...

    def abort(self) -> None:
        """Close and delete; harmless after `finish` or twice."""
        ...

    def __enter__(self) -> Incoming: ...
    def __exit__(self, *unused: object) -> None: ...


class BlobStore(Protocol):
    """Immutable, content-addressed files."""

    def receive(self, name: str) -> Incoming:
        """Begin a file in the incoming area; `name` is unique (use `c.ids.nonce()`)."""
        ...

    def adopt(self, upload: UploadedFile) -> BlobRef:
        """Make a finished upload a blob, durably, by renaming. Raises `OutOfDisk`."""
        ...

    def put(self, pieces: Iterable[bytes | bytearray | memoryview], *, name: str) -> BlobRef:
        """`receive`, write, `keep`. Raises `OutOfDisk`, `CorruptFile`."""
        ...

    def keep(self, incoming: Incoming) -> BlobRef:
        """Finish, read back and verify, then `adopt`. Raises `OutOfDisk`, `CorruptFile`."""
        ...

    def get(self, sha256: str) -> BlobRef:
        """The blob, or `NotFound`."""
        ...

    def verify(self, sha256: str) -> BlobRef:
        """The blob after reading all of it. Raises `NotFound` or `CorruptFile`."""
        ...

    def delete(self, sha256: str) -> int:
        """Bytes freed; 0 when it was gone already."""
        ...

    def stored(self) -> Iterator[tuple[str, float]]:
        """(SHA-256, time of writing in seconds since the epoch) of every blob."""
        ...

    def clear_incoming(self, *, older_than: float) -> int:
        """Delete unfinished files last written before that time; how many there were."""
        ...

    def free_bytes(self) -> int:
        """Free space where blobs go."""
        ...

    def check_writable(self) -> None:
        """Write, sync and delete a small file. Raises `OutOfDisk` or `Unavailable`."""
        ...
