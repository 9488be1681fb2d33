"""`bithaul backup`: a run into one file and back, on real files, while others write; and what is refused."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bithaul.cli.main import run
from bithaul.coordinator.database.tables import versions as version_rows
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.services import backup as backup_service
from bithaul.coordinator.services.archive import LIST, SEAL, ArchiveReader, _seal
from bithaul.coordinator.services.backup import create_backup
from bithaul.coordinator.services.restore import restore_backup
from bithaul.coordinator.services.retention import retain
from bithaul.errors import (
    BithaulError,
    Conflict,
    CorruptFile,
    InvalidConfig,
    InvalidInput,
    NotFound,
    OutOfDisk,
)

House = Any
MakeHouse = Callable[..., House]


def nothing(_done: int) -> None:
    """Nobody looks at the progress."""


def back_up(house: House, out: Path) -> Path:
    create_backup(house.c, out, on_size=nothing, on_progress=nothing)
    return out


def restore(file: Path, directory: Path, **options: Any) -> Any:
    return restore_backup(file, directory, on_size=nothing, on_progress=nothing, **options)


@pytest.fixture
def file(trained: House) -> Path:
    return back_up(trained, trained.directory.parent / "run.bithaul")


def members(file: Path) -> dict[str, bytes]:
    """As any tar program sees them."""
    with tarfile.open(file) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def rewritten(file: Path, content: list[tuple[str, bytes]], *, kind: bytes = tarfile.REGTYPE) -> Path:
    """The same backup with these members; the last one of another kind."""
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as archive:
        for i, (name, data) in enumerate(content):
            head = tarfile.TarInfo(name)
            head.size = len(data)
            if i == len(content) - 1:
                head.type = kind
                head.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(head, io.BytesIO(data))
    cut = file.read_bytes()
    while cut[-1024:] == bytes(1024):  # tarfile fills up to 10 KiB
        cut = cut[:-512]
    file.write_bytes(cut + bytes(512))
    return file


def sealed(listed: dict[str, Any]) -> list[tuple[str, bytes]]:
    text = json.dumps(listed).encode()
    return [(LIST, text), (SEAL, _seal(text))]


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if "partial" in p.name or "restoring" in p.name)


def test_a_restored_run_goes_on_bit_for_bit(trained: House, file: Path, make_house: MakeHouse) -> None:
    """Catches: an update that waits is lost, weights that differ, a run that leases nothing."""
    done = restore(file, trained.directory.parent / "run1")
    assert (done.run, done.version, done.clients_to_rotate) == ("test", 3, [])
    copy = make_house(clock=trained.clock)  # its folder is run1
    assert copy.directory == Path(done.dir)
    assert (copy.theta() == trained.theta()).all()
    for house in (trained, copy):
        house.report("bob", house.claim("bob"))
        house.clock.time += 10.0
        assert house.merge().version == 4
    assert (copy.theta() == trained.theta()).all()
    assert copy.c.settings.retention_keep == 3
    assert [row.action for row in read_audit(copy.c, limit=1)] == ["backup.restore"]
    assert [row.action for row in read_audit(trained.c, limit=1)] == ["backup.create"]
    restored = {p.relative_to(copy.directory).as_posix() for p in copy.directory.rglob("*") if p.is_file()}
    assert {"run.json", "bithaul.toml", "corpus/manifest.json", "corpus/train-00000.bin"} <= restored
    assert "corpus/Notes.TXT" not in restored


def test_a_lease_from_after_the_backup_is_unknown_and_one_from_before_counts(
    trained: House, file: Path, make_house: MakeHouse
) -> None:
    """Catches: a worker that reports into a restored coordinator what it never gave out."""
    before = trained.claim("bob")
    file.unlink()
    back_up(trained, file)
    frames = {"bob": trained.frame(before)}
    trained.send("bob", before, frames["bob"])
    trained.clock.time += 10.0
    assert trained.merge().version == 4
    after = trained.claim("ann")  # from version 4, which the restored coordinator will not have
    frames["ann"] = trained.frame(after)
    assert trained.newest.version == after.base_version == 4
    restore(file, trained.directory.parent / "run1")
    copy = make_house(clock=trained.clock)
    assert copy.send("bob", before, frames["bob"]).verdict == "accepted"
    with pytest.raises(Conflict) as refused:
        copy.send("ann", after, frames["ann"])
    assert refused.value.error_code == "unknown_fence"
    copy.clock.time += 10.0
    assert copy.merge().version == 4
    assert copy.claim("ann").base_version == 4


def test_the_file_is_private_and_readable_by_tar(trained: House, file: Path) -> None:
    """Catches: a mode of the umask; the same shard twice; paths nobody can make sense of."""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    inside = members(file)
    names = list(inside)
    assert names[:3] == [LIST, SEAL, "coordinator.db"]
    listed = json.loads(inside[LIST])
    assert len(listed["files"]) > len(names) - 2  # the corpus's shards are blobs already
    assert not [name for name in names if name.startswith("corpus/") and name.endswith((".bin", ".idx"))]
    assert leftovers(file.parent) == leftovers(trained.directory) == []


def test_the_output_is_one_object(trained: House, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches: keys that scripts read and are gone, a line after the object."""
    out = trained.directory.parent / "one.bithaul"
    with pytest.raises(SystemExit) as ended:
        run(["backup", "create", "--dir", str(trained.directory), "--out", str(out), "--json"])
    made = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert ended.value.code == 0
    assert made.keys() == {"file", "size", "sha256", "run", "version", "files", "created_at"}
    assert (made["size"], made["version"]) == (out.stat().st_size, 3)
    with pytest.raises(SystemExit):
        run(["backup", "restore", str(out), "--dir", str(out.parent / "new"), "--json"])
    done = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (done["dir"], done["version"]) == (str(out.parent / "new"), 3)
    for words in (
        ["create", "--dir", str(out.parent / "new"), "--out", str(out)],
        ["restore", str(out), "--dir", str(out.parent / "new")],
    ):
        with pytest.raises(SystemExit) as ended:
            run(["backup", *words, "--json"])
        told = json.loads(capfd.readouterr().out.splitlines()[-1])
        assert (ended.value.code, told["error"]) == (5, "conflict")


def test_progress_adds_up(trained: House) -> None:
    """Catches: a share above one, or an end that never comes."""
    sizes: list[int] = []
    steps: list[int] = []
    out = trained.directory.parent / "p.bithaul"
    create_backup(trained.c, out, on_size=sizes.append, on_progress=steps.append)
    restore_backup(out, out.parent / "p", on_size=sizes.append, on_progress=steps.append)
    assert sizes[0] == sizes[1] > 0
    assert steps.count(sizes[0]) == 2
    assert max(steps) == sizes[0]


def test_what_retention_deletes_meanwhile_is_still_in_it(
    trained: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a blob that goes between the copy of the rows and the copy of the files."""
    trained.train(1)
    out = trained.directory.parent / "busy.bithaul"
    holding, calls = backup_service._hold, []

    def train_then_hold(*arguments: Any) -> bool:
        calls.append(arguments)
        if len(calls) == 1:  # before anything is held: version 1 to 3 go, the first try must fail
            trained.train(6)
            retain(trained.c)
        return holding(*arguments)

    monkeypatch.setattr(backup_service, "_hold", train_then_hold)
    writing = backup_service.write_archive

    def retain_then_write(*arguments: Any, **options: Any) -> str:
        trained.train(6)  # after it is held: what it has is deleted under its hands
        retain(trained.c)
        return writing(*arguments, **options)

    monkeypatch.setattr(backup_service, "write_archive", retain_then_write)
    back_up(trained, out)
    with out.open("rb") as stream:
        listed = ArchiveReader(stream, out).listed
    assert listed.version == 10
    gone = [f for f in listed.files if f.is_blob and not (trained.directory / f.path).exists()]
    assert gone
    assert restore(out, out.parent / "run9").version == 10


def test_no_run_no_file(tmp_path: Path, make_house: MakeHouse, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches: a backup of nothing; a database made in a folder that had none."""
    house = make_house()
    with pytest.raises(NotFound):
        back_up(house, tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        run(["backup", "create", "--dir", str(tmp_path / "empty"), "--out", str(tmp_path / "x")])
    assert ended.value.code == 4
    assert list((tmp_path / "empty").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]


def test_nothing_is_overwritten(trained: House, file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(Conflict, match="exists"):
        back_up(trained, file)
    used = file.parent / "used"
    used.mkdir()
    (used / "mine").write_text("mine")
    for taken in (used, file, trained.directory):
        with pytest.raises(Conflict, match="not touched"):
            restore(file, taken)
    assert file.read_bytes() == before
    assert (used / "mine").read_text() == "mine"
    (file.parent / "empty").mkdir()
    assert restore(file, file.parent / "empty").version == 3


def test_one_backup_at_a_time_and_a_killed_one_leaves_nothing_for_long(trained: House, file: Path) -> None:
    """Catches: links of a killed backup that keep deleted weights on the disk for ever."""
    left = trained.directory / "backup.partial"
    left.mkdir()
    (left / "old").write_text("left by a killed backup")
    with backup_service._staging(trained.c), pytest.raises(Conflict, match="being made"):
        back_up(trained, file.parent / "second")
    back_up(trained, file.parent / "third")
    assert not left.exists()


def test_a_full_disk_leaves_no_file_and_no_row(trained: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real limit of the system on the size of a file stands in for a full disk."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    out = trained.directory.parent / "full.bithaul"
    trained.train(4)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writing = backup_service.write_archive

    def limited(*arguments: Any, **options: Any) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        return writing(*arguments, **options)

    monkeypatch.setattr(backup_service, "write_archive", limited)
    try:
        with pytest.raises(OutOfDisk, match="full"):
            back_up(trained, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert leftovers(out.parent) == leftovers(trained.directory) == []
    assert not out.exists()
    assert [row for row in read_audit(trained.c, limit=9) if row.action == "backup.create"] == []


def test_a_restore_that_would_not_fit_is_refused_before_it_begins(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(file.parent)._replace(free=1_000_000)
    monkeypatch.setattr("bithaul.coordinator.services.restore.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutOfDisk, match="make room"):
        restore(file, file.parent / "new")
    assert leftovers(file.parent) == []


def test_damage_anywhere_is_found_and_leaves_nothing(file: Path) -> None:
    """Catches: a byte that no check reads. Every block of the file is spoiled once, and every end cut."""
    whole = file.read_bytes()
    chance = random.Random(5)
    for start in range(0, len(whole), max(512, len(whole) // 40)):
        spoiled = bytearray(whole)
        spoiled[min(start + chance.randrange(512), len(whole) - 1)] ^= 1 << chance.randrange(8)
        file.write_bytes(spoiled)
        with pytest.raises((CorruptFile, InvalidInput)) as refused:
            restore(file, file.parent / "new")
        assert str(file) in refused.value.message
        assert "\n" not in refused.value.message
    for length in (0, 1, 511, 512, 700, len(whole) // 2, len(whole) - 512, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises((CorruptFile, InvalidInput)):
            restore(file, file.parent / "new")
    file.write_bytes(whole + b"\0")
    with pytest.raises(CorruptFile, match="end"):
        restore(file, file.parent / "new")
    assert not (file.parent / "new").exists()
    assert leftovers(file.parent) == []


@pytest.mark.parametrize("content", [b"", b"hello" * 500, bytes(4096), b"PK\x03\x04" + bytes(2000)])
def test_a_foreign_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InvalidInput, match="is no bithaul backup"):
        restore(tmp_path / "x", tmp_path / "new")
    with pytest.raises(NotFound):
        restore(tmp_path / "missing", tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


HOSTILE = (
    "../evil",
    "/tmp/evil",
    "corpus/../../evil",
    "corpus/..\\..\\evil",
    "C:\\evil",
    "secrets/pepper",
    "corpus/.hidden",
    "corpus/sub/manifest.json",
    "blobs/00/../../../evil",
    "coordinator.db\n",
    "coordinator.db-wal",
    "corpus/a\0b.json",
    "workers/ann/outbox",
    "",
)


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_paths_are_refused(file: Path, path: str) -> None:
    """Zip-slip. A member leads out of the folder, or to a place where no file of a backup belongs."""
    inside = members(file)
    listed = json.loads(inside[LIST])
    entry = next(f for f in listed["files"] if f["path"] == "run.json")
    rest = [(name, data) for name, data in inside.items() if name not in (LIST, SEAL)]
    content = [(path if name == "run.json" else name, data) for name, data in rest]
    if path and "\0" not in path:  # the list is honest, a member is not
        rewritten(file, [*sealed(listed), *content])
        with pytest.raises(CorruptFile):
            restore(file, file.parent / "new")
    entry["path"] = path  # both lie
    rewritten(file, [*sealed(listed), *content])
    with pytest.raises(CorruptFile, match="no file of a run"):
        restore(file, file.parent / "new")
    assert not [p for p in (file.parent / "evil", Path("/tmp/evil")) if p.exists()]
    assert not (file.parent / "new").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_files_are_refused(file: Path, kind: bytes) -> None:
    inside = members(file)
    listed = json.loads(inside[LIST])
    listed["files"] = [f for f in listed["files"] if f["path"] != "run.json"] + [
        {
            "path": "run.json",
            "size": 0,
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        }
    ]
    rest = [(n, d) for n, d in inside.items() if n not in (LIST, SEAL, "run.json")]
    rewritten(file, [*sealed(listed), *rest, ("run.json", b"")], kind=kind)
    with pytest.raises(CorruptFile, match=r"run\.json"):
        restore(file, file.parent / "new")
    rewritten(file, [*sealed(listed), *rest, ("run.json", b"")])
    assert restore(file, file.parent / "new").version == 3  # an ordinary file there is fine


def lists(good: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    files = good["files"]
    yield "twice", {**good, "files": [*files, files[0]]}
    yield "valid", {**good, "files": [{**files[0], "size": -1}, *files[1:]]}
    yield "valid", {**good, "files": [{**files[0], "sha256": "x" * 64}, *files[1:]]}
    yield "valid", {**good, "files": [{**files[0], "mode": 511}, *files[1:]]}
    yield "valid", {**good, "created_at": "NaN"}
    yield "valid", {**good, "format": "other"}
    yield (
        "named by its SHA-256",
        {
            **good,
            "files": [*files, {"path": "blobs/00/" + "0" * 64, "size": 1, "sha256": "1" * 64}],
        },
    )
    yield "is missing", {**good, "files": [*files, {"path": "run.json", "size": 1, "sha256": "1" * 64}]}


def test_lists_that_lie_are_refused(file: Path) -> None:
    inside = members(file)
    rest = [(name, data) for name, data in inside.items() if name not in (LIST, SEAL, "run.json")]
    good = json.loads(inside[LIST])
    good["files"] = [f for f in good["files"] if f["path"] != "run.json"]
    for said, listed in lists(good):
        rewritten(file, [*sealed(listed), *rest])
        with pytest.raises(CorruptFile, match=said):
            restore(file, file.parent / "new")
    rewritten(file, [*sealed({**good, "format_version": 2}), *rest])
    with pytest.raises(InvalidInput, match="version that made it"):
        restore(file, file.parent / "new")
    rewritten(file, [(LIST, b"[" * 100_000), (SEAL, _seal(b"[" * 100_000)), *rest])
    with pytest.raises(CorruptFile, match="cannot be read"):
        restore(file, file.parent / "new")
    rewritten(file, [*sealed(good), *rest])
    assert restore(file, file.parent / "new").version == 3  # without a lie it is a good backup


def test_a_database_of_another_run_is_refused(trained: House, file: Path) -> None:
    """Catches: rows and blobs that do not belong together, which training would find out much later."""
    inside = members(file)
    listed = json.loads(inside[LIST])
    blob = next(f for f in listed["files"] if f["path"].startswith("blobs/"))
    listed["files"] = [f for f in listed["files"] if f["sha256"] != blob["sha256"]]
    rest = [(n, d) for n, d in inside.items() if n not in (LIST, SEAL, blob["path"])]
    rewritten(file, [*sealed(listed), *rest])
    with pytest.raises(BithaulError, match="lacks 1 files"):
        restore(file, file.parent / "new")
    rewritten(file, [*sealed({**listed, "version": 7}), *rest])
    with pytest.raises(CorruptFile, match="not that of its list"):
        restore(file, file.parent / "new")
    assert leftovers(file.parent) == []


def test_a_damaged_blob_is_not_backed_up(trained: House) -> None:
    """Catches: damage that is copied, sealed and found on the day it is needed."""
    with trained.c.database.read() as connection:
        sha256 = connection.execute(version_rows.select()).mappings().first()["sha256"]
    path = trained.c.blobs.get(sha256).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match="damaged or was changed"):
        back_up(trained, trained.directory.parent / "bad")
    assert not (trained.directory.parent / "bad").exists()


def test_a_database_elsewhere_is_not_ours_to_back_up(
    trained: House, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a restore that migrates and strips whatever database the environment names."""
    other = file.parent / "other.db"
    monkeypatch.setenv("BITHAUL_DATABASE_URL", f"sqlite:///{other}")
    with pytest.raises(InvalidConfig, match="database_url"):
        restore(file, file.parent / "new")
    assert not other.exists()
    trained.reopen()
    with pytest.raises(InvalidConfig, match="database_url"):
        back_up(trained, file.parent / "second")


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_a_folder_that_cannot_be_written_is_a_sentence(trained: House) -> None:
    with pytest.raises(InvalidInput, match="no folder"):
        back_up(trained, trained.directory.parent / "missing" / "x")
