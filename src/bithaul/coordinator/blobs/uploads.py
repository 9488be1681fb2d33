"""Uploads that may break off and go on: bytes in a file, what they are for beside it, both outlive a restart.

An upload belongs to one worker, task and fence, and has a fixed length. Bytes are only ever appended at the
end; the newest writer wins, since an older one is usually a dead connection. Bytes are synced when the last
has come: after a power cut an upload may be shorter than it was said to be, so whoever sends asks first.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bithaul.coordinator.blobs.local import disk_errors, file_sha256
from bithaul.coordinator.blobs.store import UploadedFile
from bithaul.errors import Conflict, NotFound, OutOfDisk

PER_WORKER = 4  # uploads that run; one is usual, an old one may wait for its end
_NAME = re.compile(r"[0-9a-f]{32}")


class UploadInfo(BaseModel):
    """What an upload is for. `length` in bytes, `created` in seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker: str
    task: int
    fence: str
    length: int = Field(ge=1)
    sha256: str | None = None  # of the whole, if the worker said it
    created: float

    @property
    def lease(self) -> tuple[str, int, str]:
        return self.worker, self.task, self.fence


@dataclass
class _State:
    info: UploadInfo
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while bytes are written or taken
    writer: object | None = None  # the newest; older ones stop
    taken: bool = False  # its update is being judged


@dataclass(frozen=True)
class Upload:
    """`offset`: how many bytes are here. `busy`: all of them, and the update is being judged."""

    id: str
    info: UploadInfo
    offset: int
    busy: bool = False

    @property
    def complete(self) -> bool:
        return self.offset == self.info.length


class Uploads:
    """The uploads in `folder`. Thread-safe; one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._states: dict[str, _State] = {}
        self._of_lease: dict[tuple[str, int, str], list[str]] = {}  # names, the oldest first
        with disk_errors():
            folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.json"):
            try:
                info = UploadInfo.model_validate_json(path.read_bytes())
            except (ValidationError, OSError):
                continue  # half written; its bytes go with the next `sweep`
            if _NAME.fullmatch(path.stem) and self._data(path.stem).is_file():
                self._add(path.stem, info)

    def create(self, name: str, info: UploadInfo) -> Upload:
        """A new upload under a fresh 128-bit `name` (hex). Raises `OutOfDisk`.

        A worker's oldest makes place for it: the room that is kept free for uploads is everybody's.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no upload's name")
        self.make_place(info.worker)
        try:
            with disk_errors():
                self._data(name).open("xb").close()
                self._about(name).write_text(info.model_dump_json(), encoding="utf-8")
        except OutOfDisk:
            self._remove(name)
            raise
        with self._lock:
            self._add(name, info)
        return Upload(name, info, 0)

    def make_place(self, worker: str) -> None:
        """Give up a worker's oldest uploads until it may begin another one."""
        with self._lock:
            own = [n for n, s in self._states.items() if s.info.worker == worker and not s.taken]
            own.sort(key=lambda name: self._states[name].info.created)
            old = own[: max(0, len(own) - PER_WORKER + 1)]
            for name in old:
                self._drop(name)
        for name in old:
            self._remove(name)

    def get(self, name: str, *, worker: str) -> Upload:
        """Raises `NotFound`, for another worker's upload too."""
        return self._upload(name, self._state(name, worker))

    def of_lease(self, worker: str, *, task: int, fence: str) -> Upload | None:
        """The running upload for a lease."""
        with self._lock:
            name = next(iter(self._of_lease.get((worker, task, fence), ())), None)
            state = None if name is None else self._states[name]
        return None if name is None or state is None else self._upload(name, state)

    def written_at(self, worker: str, *, task: int, fence: str) -> float | None:
        """When the running upload for a lease last got a byte, by the file system's clock."""
        upload = self.of_lease(worker, task=task, fence=fence)
        try:
            return self._data(upload.id).stat().st_mtime if upload is not None else None
        except FileNotFoundError:
            return None

    def pending_bytes(self) -> int:
        """Bytes that running uploads may still bring."""
        with self._lock:
            infos = [(name, state.info.length) for name, state in self._states.items()]
        return sum(max(0, length - self._size(name)) for name, length in infos)

    @contextmanager
    def writer(self, name: str, *, worker: str, offset: int) -> Iterator[Writer]:
        """Append from `offset` on, which must be where the upload ends. An older writer is stopped.

        Raises `Conflict` (`upload_offset`), `NotFound`.
        """
        state, me = self._state(name, worker), object()
        state.writer = me
        with state.lock:  # the older writer's last piece is in the file now
            size = self._size(name)
            if size != offset:
                raise Conflict(
                    f"The upload stands at {size} bytes, not at {offset}; ask with HEAD and go on there.",
                    code="upload_offset",
                )
            with disk_errors(), _gone():
                file = self._data(name).open("r+b")
        with file:
            file.seek(offset)
            yield Writer(state, me, file.fileno(), offset)

    @contextmanager
    def taking(self, name: str, *, worker: str) -> Iterator[UploadedFile]:
        """The complete file, synced; the upload is over when the block ends without an error.

        Only one at a time. Raises `Conflict` (`upload_busy`, `upload_incomplete`; `upload_sha256` when the
        whole is not what was announced, and then the upload is gone), `NotFound`.
        """
        state = self._state(name, worker)
        upload = self._upload(name, state)
        if not upload.complete:
            missing = upload.info.length - upload.offset
            raise Conflict(f"{missing} bytes are missing.", code="upload_incomplete")
        with self._lock:
            if state.taken:
                raise Conflict("This update is being judged; ask again soon.", code="upload_busy")
            state.taken = True
        try:
            with _gone():  # given up meanwhile
                with state.lock, disk_errors(), self._data(name).open("r+b") as file:
                    os.fsync(file.fileno())
                sha256 = file_sha256(self._data(name))
            if upload.info.sha256 not in (None, sha256):
                self.delete(name, worker=worker)
                raise Conflict(
                    "The upload's SHA-256 is not the one announced; send it again.", code="upload_sha256"
                )
            yield UploadedFile(self._data(name), upload.info.length, sha256)
            self._data(name).unlink(missing_ok=True)
        finally:
            state.taken = False
            if not self._data(name).is_file():  # used, or given up by who used it
                with self._lock:
                    self._drop(name)
                self._remove(name)

    def delete(self, name: str, *, worker: str) -> None:
        """Raises `NotFound`."""
        self._state(name, worker)
        with self._lock:
            self._drop(name)
        self._remove(name)

    def sweep(self, *, older_than: float) -> int:
        """Delete what nobody has written to since that time; how many."""
        with self._lock:
            known = set(self._states)
            files = [p for p in self._folder.iterdir() if p.stat().st_mtime < older_than]
            old = {p.stem for p in files if p.suffix == ".upload" or p.stem not in known}
            for name in old:
                self._drop(name)
        for name in old:
            self._remove(name)
        return len(old)

    def _add(self, name: str, info: UploadInfo) -> None:
        """With the lock held, or before anybody else has this object."""
        self._states[name] = _State(info)
        self._of_lease.setdefault(info.lease, []).append(name)

    def _drop(self, name: str) -> None:
        """With the lock held. Whoever still writes to it stops."""
        state = self._states.pop(name, None)
        if state is None:
            return
        state.writer = None
        names = self._of_lease[state.info.lease]
        names.remove(name)
        if not names:
            del self._of_lease[state.info.lease]

    def _state(self, name: str, worker: str) -> _State:
        """Raises `NotFound`, for another worker's upload too."""
        with self._lock:
            state = self._states.get(name)
        if state is None or state.info.worker != worker:
            raise _no_such_upload()
        return state

    def _upload(self, name: str, state: _State) -> Upload:
        return Upload(name, state.info, self._size(name), state.taken)

    def _size(self, name: str) -> int:
        try:
            return self._data(name).stat().st_size
        except FileNotFoundError:
            return 0

    def _remove(self, name: str) -> None:
        self._data(name).unlink(missing_ok=True)
        self._about(name).unlink(missing_ok=True)

    def _data(self, name: str) -> Path:
        return self._folder / f"{name}.upload"

    def _about(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _no_such_upload() -> NotFound:
    return NotFound("There is no such upload; begin again with POST /gradient.")


@contextmanager
def _gone() -> Iterator[None]:
    """A file that its worker gave up in another request is `NotFound`."""
    try:
        yield
    except FileNotFoundError:
        raise _no_such_upload() from None


class Writer:
    """Appends pieces; `offset` is where the next one goes."""

    def __init__(self, state: _State, me: object, handle: int, offset: int) -> None:
        self._state, self._me, self._handle = state, me, handle
        self._began = self.offset = offset
        self._digests = {"sha1": hashlib.sha1(usedforsecurity=False), "sha256": hashlib.sha256()}

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Raises `Conflict` (`upload_superseded`, `wrong_length`), `OutOfDisk`; what is written stays."""
        if self.offset + len(piece) > self._state.info.length:
            raise Conflict(
                f"The upload has {self._state.info.length} bytes; this goes beyond.", code="wrong_length"
            )
        with self._state.lock:
            self._require_newest()
            with disk_errors():
                view = memoryview(piece)
                while view:
                    done = os.write(self._handle, view)
                    view = view[done:]
                    self.offset += done
        for digest in self._digests.values():
            digest.update(piece)

    def matches(self, algorithm: str, digest: bytes) -> bool:
        """Whether what this writer wrote has that digest; takes it back if not."""
        if self._digests[algorithm].digest() == digest:
            return True
        with self._state.lock:
            self._require_newest()
            os.ftruncate(self._handle, self._began)
            self.offset = self._began
        return False

    def _require_newest(self) -> None:
        if self._state.writer is not self._me:
            raise Conflict("Another request continues this upload.", code="upload_superseded")
