"""A disk that can be full: the blob store of the rehearsal's coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from bithaul.coordinator.blobs.store import BlobRef, BlobStore, Incoming, UploadedFile
from bithaul.errors import OutOfDisk


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
