"""A disk that forgets what was not synced: what it takes, and that the rehearsal's promises hang on syncs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bithaul.coordinator.blobs import local
from bithaul.simulation.disk import ForgetfulDisk
from bithaul.worker import files

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write(path: Path, data: bytes, *, synced: bool, mode: str = "wb") -> None:
    with path.open(mode) as file:
        file.write(data)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def left(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_bytes_last_when_the_file_and_names_when_the_folder_was_synced(tmp_path: Path) -> None:
    """Catches a disk on which one of the two is enough."""
    write(tmp_path / "old", b"old", synced=False)
    disk = ForgetfulDisk(tmp_path)
    with disk.watching():
        for name in ("both", "grown", "changed", "name"):
            write(tmp_path / name, b"1234", synced=name != "name")
        sync(tmp_path)
        write(tmp_path / "grown", b"56", synced=False, mode="ab")
        os.utime(tmp_path / "changed", (1, 1))  # written anew, as long as before
        (tmp_path / "old").rename(tmp_path / "moved")
        write(tmp_path / "bytes", b"1234", synced=True)
        assert sorted(path.name for path in disk.lost()) == ["bytes", "changed", "grown", "moved", "name"]
    disk.cut()
    assert left(tmp_path) == {"both": b"1234", "grown": b"1234", "changed": b"", "name": b""}
    assert disk.lost() == []


def test_a_disk_may_have_written_names_by_itself_and_not_the_bytes(tmp_path: Path) -> None:
    """Catches code that takes a file that is there for a whole one."""
    disk = ForgetfulDisk(tmp_path)
    with disk.watching():
        (tmp_path / "new").mkdir()
        write(tmp_path / "new" / "bytes", b"1234", synced=True)
        write(tmp_path / "new" / "name", b"1234", synced=False)
    disk.cut(keep_names=True)
    assert left(tmp_path) == {"new/bytes": b"1234", "new/name": b""}


def test_a_name_over_another_lasts_with_the_bytes_it_has_then(tmp_path: Path) -> None:
    """Catches a rename over a synced file that counts as synced itself: the file would be empty."""
    write(tmp_path / "a", b"older", synced=True)
    disk = ForgetfulDisk(tmp_path)
    with disk.watching():
        write(tmp_path / "a.new", b"newer", synced=False)
        (tmp_path / "a.new").replace(tmp_path / "a")
        sync(tmp_path)
    disk.cut()
    assert left(tmp_path) == {"a": b""}


def test_a_folder_lasts_by_its_own_name_and_only_the_part_that_is_cut_forgets(tmp_path: Path) -> None:
    """Catches a machine whose power cut empties the coordinator's disk, and a new folder that is there."""
    parts = [tmp_path / name for name in ("one", "two")]
    for part in parts:
        part.mkdir()
    disk = ForgetfulDisk(tmp_path, apart=lambda path: path.name == "apart")
    with disk.watching():
        for part in parts:
            for folder in ("kept", "lost"):
                (part / folder).mkdir()
                write(part / folder / "file", b"1", synced=True)
                sync(part / folder)
                if folder == "kept":
                    sync(part)
            write(part / "apart", b"1", synced=False)
    disk.cut(parts[0])
    kept = ["one/apart", "one/kept/file", "two/apart", "two/kept/file", "two/lost/file"]
    assert left(tmp_path) == dict.fromkeys(kept, b"1")
    assert not (parts[0] / "lost").exists()


def crashed(make: Any) -> Any:
    rehearsal = make()
    rehearsal.faults.crash_coordinator("submit.committed", nth=2)
    outcome = rehearsal.run()
    assert outcome.coordinator_crashes == ["submit.committed"]
    return outcome


def test_a_power_cut_right_after_the_commit_takes_nothing(make: Any) -> None:
    outcome = crashed(make)
    assert outcome.broken == ""
    assert outcome.kept


@pytest.mark.parametrize("missing", ["bytes", "folder", "new folder"])
def test_a_rehearsal_notices_a_missing_sync(make: Any, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Catches a rehearsal that would go well on any disk."""
    if missing == "bytes":
        monkeypatch.setattr(local.LocalIncoming, "finish", unsynced)
    elif missing == "folder":
        monkeypatch.setattr(local, "replace_durably", lambda source, target: source.replace(target))
    else:
        monkeypatch.setattr(local.LocalBlobStore, "_make_folder", lambda _, f: f.mkdir(exist_ok=True))
    assert "does not start again: " in crashed(make).broken


@pytest.mark.parametrize("synced", [True, False])
def test_a_machine_s_power_cut_takes_no_finished_update(
    make: Any, monkeypatch: pytest.MonkeyPatch, synced: bool
) -> None:
    """Catches an outbox that its machine's disk forgets, which costs a task of work and no promise."""
    if not synced:
        monkeypatch.setattr(files, "sync_folder", lambda _: None)
    lost: list[Path] = []

    def cut(disk: ForgetfulDisk, part: Path, *, keep_names: bool) -> None:
        lost.extend(path.relative_to(part) for path in disk.lost(part))
        real(disk, part, keep_names=keep_names)

    real = ForgetfulDisk.cut
    monkeypatch.setattr(ForgetfulDisk, "cut", cut)
    rehearsal = make()
    rehearsal.faults.at(worker="w1", nth=2).crash("outbox.renamed")
    rehearsal.faults.at(worker="w2", nth=2).crash("residual.renamed")
    outcome = rehearsal.run()
    assert outcome.worker_deaths == 2
    assert outcome.kept
    kept = {"instance", "outbox", "residual"}
    assert {path.parts[0] for path in lost} == {"cache"} | (set() if synced else kept)


def unsynced(incoming: local.LocalIncoming) -> Any:
    incoming._file.close()
    incoming._finished = True
    return local.UploadedFile(incoming._path, incoming._size, incoming._digest.hexdigest())
