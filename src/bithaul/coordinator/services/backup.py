"""Back up one run into one file, while the coordinator serves or not.

The database is copied with SQLite's own backup, so it is one moment of it, and freed of what must not leave
the machine: sessions, codes and signing keys. Everything its rows name is then held by hard links, so
retention may go on. Secret files stay out (`secrets/`), and so does what can be made again: `model/`,
`logs/`, `workers/`. The file is written aside, synced and given its name at the end; nothing is overwritten.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from bithaul import __version__
from bithaul.coordinator.blobs.local import file_sha256, fsync_folder
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, versions
from bithaul.coordinator.database.copies import check_database, compact_database, copy_database
from bithaul.coordinator.database.engine import Database
from bithaul.coordinator.identity import secretfiles
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import secrets_folder
from bithaul.coordinator.identity.expiry import forget_ways_in
from bithaul.coordinator.services.archive import (
    DATABASE,
    SETTINGS,
    SPEC,
    BackupFile,
    BackupList,
    Progress,
    may_hold,
    write_archive,
)
from bithaul.coordinator.services.retention import blobs_wanted
from bithaul.coordinator.settings import without_secret
from bithaul.errors import Conflict, InvalidConfig, InvalidInput, NotFound, Unavailable, writing

CORPUS = "corpus"
_STAGING = "backup.partial"
_TRIES = 5  # retention may delete a blob between the copy of the database and the links


@dataclass(frozen=True)
class BackedUp:
    """`size` and `sha256` are those of the whole file."""

    file: str
    size: int
    sha256: str
    run: str
    version: int
    files: int
    created_at: float


def create_backup(
    c: Coordinator, out: Path, *, on_progress: Progress, on_size: Progress, actor: str = "cli"
) -> BackedUp:
    """`on_size` hears the bytes to come, then `on_progress` those done.

    Raises `NotFound` without a run, `Conflict` when `out` exists or another backup is being made,
    `InvalidConfig` for a database elsewhere, `CorruptFile`, `OutOfDisk`, `InvalidInput`, `Unavailable`.
    """
    if c.settings.database_url:
        raise InvalidConfig(
            "This run keeps its rows in the database of the setting database_url; back that up with its own "
            "tools, such as pg_dump for PostgreSQL, and then the run's folder beside it."
        )
    if out.exists() or out.is_symlink():
        raise Conflict(f"{out} exists and is not overwritten; name a new file.")
    with _staging(c) as staging, writing(out):
        listed = _stage(c, staging)
        on_size(listed.size)
        with _new_file(out) as stream:
            sha256 = write_archive(
                stream, listed, source=lambda file: _source(c, staging, file), on_progress=on_progress
            )
            with c.database.write() as connection:
                now, detail = c.clock.now(), f"version {listed.version}"
                record(
                    connection, now, actor=actor, action="backup.create", subject=listed.run, detail=detail
                )
        size = out.stat().st_size
    return BackedUp(str(out), size, sha256, listed.run, listed.version, len(listed.files), listed.created_at)


def pepper_check(pepper: bytes) -> str:
    """Tells whether a pepper is that of a backup; nothing about its bytes follows from it."""
    return hmac.new(pepper, b"bithaul backup", hashlib.sha256).hexdigest()


@contextmanager
def _staging(c: Coordinator) -> Iterator[Path]:
    """A folder beside the blobs; what a killed backup left in it goes first."""
    lock = FileLock(c.settings.directory / "backup.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Conflict(f"Another backup of {c.settings.directory} is being made; wait for it.") from None
    folder = c.settings.directory / _STAGING
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _stage(c: Coordinator, staging: Path) -> BackupList:
    """Hold everything in `staging`, or know that it cannot change; the list of it."""
    copy = staging / DATABASE
    for _ in range(_TRIES):
        copy.unlink(missing_ok=True)
        copy_database(c.settings.database_file, copy)
        created_at = c.clock.now()
        database = Database.open(f"sqlite:///{copy.absolute().as_posix()}", lock_folder=staging)
        with closing(database), database.write() as connection:
            forget_ways_in(connection)
            run = runs.find_run(connection)
            if run is None:
                raise NotFound(f"There is no run in {c.settings.directory}; nothing to back up.")
            version = versions.newest_version(connection, run.id).version
            wanted = sorted(blobs_wanted(connection))
        if all(_hold(c, staging, sha256) for sha256 in wanted):
            break
    else:
        raise Unavailable("Files are deleted faster than they can be backed up; pause the run and try again.")
    compact_database(copy)
    check_database(copy)
    return BackupList(
        software=__version__,
        created_at=created_at,
        run=run.name,
        version=version,
        pepper_check=_pepper_check(c),
        files=(*_small(c, staging), *_blobs(staging, wanted), *_corpus(c)),
    )


def _hold(c: Coordinator, staging: Path, sha256: str) -> bool:
    """A second name for a blob keeps its bytes; False when it is gone."""
    link = staging / sha256
    try:
        if not link.exists():
            os.link(c.blobs.get(sha256).path, link)
    except (NotFound, FileNotFoundError):
        return False
    return True


def _small(c: Coordinator, staging: Path) -> Iterator[BackupFile]:
    """The database's copy, and of what people may edit a copy too, without the secret that may be in it."""
    yield _described(DATABASE, staging / DATABASE)
    for name in (SETTINGS, SPEC):
        path = c.settings.directory / name
        if path.is_file():
            if name == SETTINGS:
                text = path.read_bytes().decode()
                left = without_secret(text, secret=c.settings.oidc_client_secret)
                (staging / name).write_bytes(left.encode())
            else:
                shutil.copyfile(path, staging / name)
            yield _described(name, staging / name)


def _blobs(staging: Path, wanted: list[str]) -> Iterator[BackupFile]:
    """Their names say what they hold; whether they still do is seen when they are written."""
    for sha256 in wanted:
        size = (staging / sha256).stat().st_size
        yield BackupFile(path=f"blobs/{sha256[:2]}/{sha256}", size=size, sha256=sha256)


def _corpus(c: Coordinator) -> Iterator[BackupFile]:
    for path in sorted((c.settings.directory / CORPUS).glob("*")):
        if path.is_file() and may_hold(f"{CORPUS}/{path.name}"):
            yield _described(f"{CORPUS}/{path.name}", path)


def _described(name: str, path: Path) -> BackupFile:
    return BackupFile(path=name, size=path.stat().st_size, sha256=file_sha256(path))


def _source(c: Coordinator, staging: Path, file: BackupFile) -> Path:
    if file.is_blob:
        return staging / file.sha256
    return (c.settings.directory if file.path.startswith(f"{CORPUS}/") else staging) / file.path


def _pepper_check(c: Coordinator) -> str | None:
    if not (secrets_folder(c) / secretfiles.PEPPER).exists():
        return None
    return pepper_check(secretfiles.read_or_create(secrets_folder(c), secretfiles.PEPPER))


@contextmanager
def _new_file(out: Path) -> Iterator[BinaryIO]:
    """A file of mode 0600 that gets the name `out` when all of it is on the disk, and else leaves nothing."""
    if not out.parent.is_dir():
        raise InvalidInput(f"There is no folder {out.parent}; make it or name another file.")
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent)
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _name_it(aside, out)
        fsync_folder(out.parent)
    finally:
        aside.unlink(missing_ok=True)


def _name_it(aside: Path, out: Path) -> None:
    """Fails when the name was taken meanwhile."""
    try:
        os.link(aside, out)
    except FileExistsError:
        raise Conflict(f"{out} exists and is not overwritten; name a new file.") from None
    except OSError as error:  # a file system without hard links, such as a USB stick's
        if out.exists():
            raise Conflict(f"{out} exists and is not overwritten; name a new file.") from error
        aside.rename(out)
