"""Disks that fail: one that can be full, and one that forgets at a power cut what was not synced."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bithaul.coordinator.blobs.store import BlobRef, BlobStore, Incoming, UploadedFile
from bithaul.errors import OutOfDisk

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

Inode = tuple[int, int]  # device and number


class ForgetfulDisk:
    """What a power cut would leave of the files under `folder`, and the cut itself, of a part of it.

    As strict as POSIX allows: bytes last when their file was synced after them, a name when its folder was
    synced after it, and a folder's own name as any other. What lies there when watching begins lasts. What
    is deleted is gone at once. `apart` names what others look after, such as a database's files.
    """

    def __init__(self, folder: Path, *, apart: Callable[[Path], bool] = lambda _: False) -> None:
        self._folder = folder
        self._apart = apart
        self._bytes: dict[Inode, tuple[int, int]] = {}  # size and time of change when last synced
        self._names: dict[Inode, set[str]] = {}  # of a folder, when last synced

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hear every `os.fsync` of this process until the block ends."""
        self.trust()
        with heard_fsync(self.synced):
            yield

    def trust(self, part: Path | None = None) -> None:
        """Take what lies there now for durable."""
        folder = part or self._folder
        self._name_all(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                self._keep(path.stat())

    def synced(self, descriptor: int) -> None:
        """A file or folder was synced."""
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._names[_inode(found)] = set(os.listdir(descriptor))
        else:
            self._keep(found)

    def lost(self, part: Path | None = None) -> list[Path]:
        """Files that a power cut would take or shorten, by name."""
        return [path for path, _ in self._losses(part or self._folder)]

    def whole(self, path: Path) -> bool:
        """Whether all bytes of a file were synced, whatever becomes of its name."""
        found = path.stat()
        return self._bytes.get(_inode(found)) == (found.st_size, found.st_mtime_ns)

    def cut(self, part: Path | None = None, *, keep_names: bool = False) -> None:
        """The power is gone: so is what would be lost in `part`, if there is one. What is left lasts.

        `keep_names`: of another kind of disk, which had written all names by itself, but not the bytes.
        """
        folder = part or self._folder
        if not folder.exists():
            return
        if keep_names:
            self._name_all(folder)
        for path, left in list(self._losses(folder)):
            kept = path.read_bytes()[:left]
            path.unlink()  # never shortened in place: whoever has mapped it would die of it
            if left is not None:
                path.write_bytes(kept)
        for path in list(self._nameless(folder)):
            shutil.rmtree(path)
        self.trust(folder)

    def _keep(self, found: os.stat_result) -> None:
        self._bytes[_inode(found)] = found.st_size, found.st_mtime_ns

    def _name_all(self, folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                self._names[_inode(path.stat())] = {entry.name for entry in path.iterdir()}

    def _losses(self, folder: Path, *, named: bool = True) -> Iterator[tuple[Path, int | None]]:
        """Every file that is not whole, and how many of its bytes would be left; None: not even a name."""
        durable = self._names.get(_inode(folder.stat()), set())
        for path in sorted(folder.iterdir()):
            if self._apart(path):
                continue
            kept = named and path.name in durable
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                yield from self._losses(path, named=kept)
            elif not kept:
                yield path, None
            else:
                size, changed = self._bytes.get(_inode(found), (0, 0))
                if (size, changed) != (found.st_size, found.st_mtime_ns):
                    yield path, size if size < found.st_size else 0

    def _nameless(self, folder: Path) -> Iterator[Path]:
        """The outermost folders whose names were not synced."""
        durable = self._names.get(_inode(folder.stat()), set())
        for path in sorted(p for p in folder.iterdir() if p.is_dir() and not self._apart(p)):
            if path.name in durable:
                yield from self._nameless(path)
            else:
                yield path


@contextmanager
def heard_fsync(hear: Callable[[int], None]) -> Iterator[None]:
    """`hear` is called with the descriptor after every `os.fsync` of this process."""
    real = os.fsync

    def fsync(fd: FileDescriptorLike) -> None:
        real(fd)
        hear(fd if isinstance(fd, int) else fd.fileno())

    os.fsync = fsync
    try:
        yield
    finally:
        os.fsync = real


def is_database(path: Path) -> bool:
    """SQLite's own files, which it syncs itself, and the lock beside them."""
    return path.name.startswith("coordinator.db") or path.suffix == ".lock"


def _inode(found: os.stat_result) -> Inode:
    return found.st_dev, found.st_ino


class FullableBlobs:
    """`store` (a `BlobStore`) while `full` says no; while it says yes, nothing new can be stored."""

    def __init__(self, store: BlobStore, full: Callable[[], bool]) -> None:
        self._store = store
        self._full = full

    def receive(self, name: str) -> Incoming:
        self._require_room()
        return self._store.receive(name)

    def adopt(self, upload: UploadedFile) -> BlobRef:
        self._require_room()
        return self._store.adopt(upload)

    def put(self, pieces: Iterable[bytes | bytearray | memoryview], *, name: str) -> BlobRef:
        self._require_room()
        return self._store.put(pieces, name=name)

    def keep(self, incoming: Incoming) -> BlobRef:
        self._require_room()
        return self._store.keep(incoming)

    def get(self, sha256: str) -> BlobRef:
        return self._store.get(sha256)

    def verify(self, sha256: str) -> BlobRef:
        return self._store.verify(sha256)

    def delete(self, sha256: str) -> int:
        return self._store.delete(sha256)

    def stored(self) -> Iterator[tuple[str, float]]:
        return self._store.stored()

    def clear_incoming(self, *, older_than: float) -> int:
        return self._store.clear_incoming(older_than=older_than)

    def free_bytes(self) -> int:
        return 0 if self._full() else self._store.free_bytes()

    def check_writable(self) -> None:
        self._require_room()
        self._store.check_writable()

    def _require_room(self) -> None:
        if self._full():
            raise OutOfDisk("The coordinator's disk is full; free some space and try again.")
