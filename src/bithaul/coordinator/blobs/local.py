"""Blobs in a local folder: `ab/abcdef...` with the SHA-256 beside it in `abcdef....sha256`.

Every write goes aside, is flushed, fsynced, read back and compared, renamed, and the folder is fsynced, a new
one's own name too; only then does the name exist. A blob without its sidecar is not there. A full disk
leaves nothing behind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bithaul.coordinator.blobs.store import BlobRef, Incoming, UploadedFile
from bithaul.errors import CorruptFile, NotFound, OutOfDisk, Unavailable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REPLACE_TRIES = 20  # Windows refuses to replace a file while somebody reads it


class LocalIncoming:
    """One file being received; see `store.Incoming`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._size = 0
        self._finished = False
        with disk_errors():
            self._file = path.open("xb")

    @property
    def size(self) -> int:
        return self._size

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        try:
            with disk_errors():
                self._file.write(piece)
        except OutOfDisk:
            self.abort()
            raise
        self._digest.update(piece)
        self._size += len(piece)

    def finish(self) -> UploadedFile:
        try:
            with disk_errors():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
        except OutOfDisk:
            self.abort()
            raise
        self._finished = True
        return UploadedFile(self._path, self._size, self._digest.hexdigest())

    def abort(self) -> None:
        if self._finished:
            return
        with suppress(OSError):  # closing flushes, and the disk may still be full
            self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> LocalIncoming:
        return self

    def __exit__(self, *unused: object) -> None:
        self.abort()


class LocalBlobStore:
    """See `store.BlobStore`. `incoming` must be on the same file system as `folder`."""

    def __init__(self, folder: Path, *, incoming: Path) -> None:
        self._folder = folder
        self._incoming = incoming
        self._durable: set[Path] = set()  # folders whose own names are synced
        with disk_errors():
            folder.mkdir(parents=True, exist_ok=True)
            incoming.mkdir(parents=True, exist_ok=True)
            fsync_folder(folder.parent)

    def receive(self, name: str) -> LocalIncoming:
        return LocalIncoming(self._incoming / f"{name}.part")

    def adopt(self, upload: UploadedFile) -> BlobRef:
        target = self._path(upload.sha256)
        with disk_errors():
            self._make_folder(target.parent)
            self._write_sidecar(target, upload.sha256)
            replace_durably(upload.path, target)
        return BlobRef(target, upload.sha256, upload.size)

    def put(self, pieces: Iterable[bytes | bytearray | memoryview], *, name: str) -> BlobRef:
        with self.receive(name) as incoming:
            for piece in pieces:
                incoming.write(piece)
            return self.keep(incoming)

    def keep(self, incoming: Incoming) -> BlobRef:
        upload = incoming.finish()
        try:
            if file_sha256(upload.path) != upload.sha256:
                raise CorruptFile(
                    "The disk gave back other bytes than were written; check it before going on."
                )
            return self.adopt(upload)
        finally:
            upload.path.unlink(missing_ok=True)

    def get(self, sha256: str) -> BlobRef:
        path = self._path(sha256)
        if not self._complete(path):
            raise NotFound(f"There is no blob {sha256[:12]}...")
        return BlobRef(path, sha256, path.stat().st_size)

    def verify(self, sha256: str) -> BlobRef:
        blob = self.get(sha256)
        found = file_sha256(blob.path)
        if found != sha256:
            raise CorruptFile(
                f"Blob {sha256[:12]}... reads back with SHA-256 {found[:12]}...: {blob.path} is damaged."
            )
        return blob

    def delete(self, sha256: str) -> int:
        path = self._path(sha256)
        size = path.stat().st_size if path.exists() else 0
        self._sidecar(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return size

    def stored(self) -> Iterator[tuple[str, float]]:
        for path in sorted(self._folder.glob("??/*")):
            if path.suffix == "" and len(path.name) == 64:
                yield path.name, path.stat().st_mtime

    def clear_incoming(self, *, older_than: float) -> int:
        old = [p for p in self._incoming.glob("*.part") if p.stat().st_mtime < older_than]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free

    def check_writable(self) -> None:
        probe = self._incoming / f"writable-{os.getpid()}-{time.monotonic_ns()}"
        try:
            with disk_errors(), probe.open("xb") as file:
                file.write(b"ok")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Unavailable(f"The blob folder cannot be written: {error.strerror}.") from error
        finally:
            probe.unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise NotFound("There is no such blob.")
        return self._folder / sha256[:2] / sha256

    def _make_folder(self, folder: Path) -> None:
        """Syncing a folder makes the names in it durable, not its own."""
        folder.mkdir(exist_ok=True)
        if folder not in self._durable:
            fsync_folder(self._folder)
            self._durable.add(folder)

    @staticmethod
    def _sidecar(path: Path) -> Path:
        return path.with_name(path.name + ".sha256")

    def _complete(self, path: Path) -> bool:
        return path.is_file() and self._sidecar(path).is_file()

    def _write_sidecar(self, target: Path, sha256: str) -> None:
        aside = target.with_name(target.name + ".sha256.new")
        try:
            with aside.open("w", encoding="ascii", newline="\n") as file:
                file.write(f"{sha256}  {target.name}\n")
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._sidecar(target))
        finally:
            aside.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_durably(source: Path, target: Path) -> None:
    """Rename over `target` and fsync its folder."""
    for left in range(_REPLACE_TRIES, 0, -1):
        try:
            source.replace(target)
            break
        except PermissionError:
            if os.name != "nt" or left == 1:
                raise
            time.sleep(0.05)
    fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open folders; its rename is journalled
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn "no space left" into `OutOfDisk`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutOfDisk("The coordinator's disk is full; free some space and try again.") from error
        raise
