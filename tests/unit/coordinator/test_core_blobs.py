"""The local blob store: durable before visible, nothing half-written, a full disk leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from bithaul.coordinator.blobs import local
from bithaul.coordinator.blobs.local import LocalBlobStore
from bithaul.errors import CorruptFile, NotFound, OutOfDisk


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs", incoming=tmp_path / "incoming")


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_blob_reads_back_under_its_hash(store: LocalBlobStore) -> None:
    blob = store.put([b"abc", b"def"], name="n")
    assert blob.sha256 == hashlib.sha256(b"abcdef").hexdigest()
    assert (blob.size, blob.path.read_bytes()) == (6, b"abcdef")
    assert store.get(blob.sha256) == store.verify(blob.sha256) == blob
    sidecar = blob.path.with_name(blob.path.name + ".sha256").read_text()
    assert sidecar == f"{blob.sha256}  {blob.path.name}\n", "sha256sum -c understands it"
    assert [sha for sha, _ in store.stored()] == [blob.sha256]


def test_the_same_bytes_are_stored_once(store: LocalBlobStore, tmp_path: Path) -> None:
    store.put([b"abc"], name="a")
    store.put([b"abc"], name="b")
    assert len(files(tmp_path / "blobs")) == 2, "one blob, one sidecar"
    assert files(tmp_path / "incoming") == []


def test_storing_again_repairs_a_damaged_blob(store: LocalBlobStore) -> None:
    blob = store.put([b"abc"], name="a")
    blob.path.write_bytes(b"abX")
    store.put([b"abc"], name="b")
    store.verify(blob.sha256)


def test_a_flipped_bit_is_seen(store: LocalBlobStore) -> None:
    """Catches checksums that are written and never read (Q4)."""
    blob = store.put([b"abc"], name="a")
    blob.path.write_bytes(b"abd")
    with pytest.raises(CorruptFile, match="damaged"):
        store.verify(blob.sha256)


def test_a_blob_without_its_sidecar_is_not_there(store: LocalBlobStore) -> None:
    blob = store.put([b"abc"], name="a")
    blob.path.with_name(blob.path.name + ".sha256").unlink()
    with pytest.raises(NotFound):
        store.get(blob.sha256)


@pytest.mark.parametrize("name", ["../coordinator.db", "", "a" * 63, "A" * 64, "/" * 64])
def test_names_that_are_no_hash_never_become_paths(store: LocalBlobStore, name: str) -> None:
    with pytest.raises(NotFound):
        store.get(name)


def test_everything_is_synced_before_its_name_exists(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a rename before the data is on disk, and a folder that is never synced."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(handle: int) -> None:
        steps.append("folder" if os.fstat(handle).st_mode & 0o040000 else "file")
        fsync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        steps.append("sidecar" if str(target).endswith(".sha256") else "blob")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    store.put([b"abc"], name="a")
    new_folder = ["folder"]  # the one it lies in: its own name too
    assert steps == ["file", *new_folder, "file", "sidecar", "blob", "folder"]


def test_a_disk_that_lies_is_noticed(store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "file_sha256", lambda _path: "0" * 64)
    with pytest.raises(CorruptFile, match="other bytes"):
        store.put([b"abc"], name="a")
    assert list(store.stored()) == []


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_leaves_nothing(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Catches partial files that fill a full disk further."""

    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    incoming = store.receive("a")
    if where == "write":
        monkeypatch.setattr(incoming, "_file", FullFile(incoming))
        with pytest.raises(OutOfDisk):
            incoming.write(b"abc")
    else:
        incoming.write(b"abc")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutOfDisk):
            incoming.finish()
    assert files(tmp_path) == []


class FullFile:
    """A file on a full disk."""

    def __init__(self, incoming: local.LocalIncoming) -> None:
        self._real = incoming._file

    def write(self, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self._real.close()


def test_an_upload_that_breaks_off_is_deleted(store: LocalBlobStore, tmp_path: Path) -> None:
    with store.receive("a") as incoming:
        incoming.write(b"half")
    assert files(tmp_path) == []


def test_left_over_uploads_are_cleared_by_age(store: LocalBlobStore, tmp_path: Path) -> None:
    old = tmp_path / "incoming" / "old.part"
    old.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    new = store.receive("new")
    assert store.clear_incoming(older_than=2000) == 1
    new.write(b"y")
    store.adopt(new.finish())


def test_delete_says_what_it_freed(store: LocalBlobStore) -> None:
    blob = store.put([b"abc"], name="a")
    assert store.delete(blob.sha256) == 3
    assert store.delete(blob.sha256) == 0
    assert list(store.stored()) == []


def test_writable_is_really_tried(store: LocalBlobStore, tmp_path: Path) -> None:
    store.check_writable()
    assert files(tmp_path) == []
