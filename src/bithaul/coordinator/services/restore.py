"""Make a run's folder from a backup: all of it verified, in a folder aside that gets its name at the end.

A new folder only; a backup that is damaged or foreign leaves nothing. Signing keys are made anew at the next
start, so tokens and sessions from before are void. Secrets of machines stay good only with the pepper they
were hashed under, which no backup holds: it is taken from the old run's `secrets/` where that still exists.
What was trained after the backup is lost; workers that know newer versions hear so and ask for work again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bithaul.coordinator.blobs.local import LocalBlobStore, file_sha256, fsync_folder
from bithaul.coordinator.clock import Clock, Ids, SystemClock, SystemIds
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.database import runs, versions
from bithaul.coordinator.database.copies import check_database
from bithaul.coordinator.identity import secretfiles
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import list_clients
from bithaul.coordinator.identity.expiry import forget_ways_in
from bithaul.coordinator.services.archive import (
    DATABASE,
    SETTINGS,
    ArchiveReader,
    BackupFile,
    BackupList,
    Progress,
)
from bithaul.coordinator.services.backup import pepper_check
from bithaul.coordinator.services.retention import blobs_wanted
from bithaul.coordinator.services.startup import check_run
from bithaul.coordinator.settings import SECRET, lacks_secret, load_settings
from bithaul.errors import Conflict, CorruptFile, InvalidConfig, InvalidInput, NotFound, OutOfDisk, writing

_SPARE = 64 * 2**20  # bytes, for SQLite and for what is written beside


@dataclass(frozen=True)
class Restored:
    """`clients_to_rotate` names the machines and applications whose secrets are void, `settings_to_give` what
    was left out of the settings file."""

    dir: str
    run: str
    version: int
    files: int
    size: int
    created_at: float
    clients_to_rotate: list[str]
    settings_to_give: list[str]


def restore_backup(
    file: Path,
    directory: Path,
    *,
    secrets: Path | None = None,
    clock: Clock | None = None,
    ids: Ids | None = None,
    on_progress: Progress,
    on_size: Progress,
) -> Restored:
    """Make `directory`, which must be new or empty, from the backup `file`.

    Raises `NotFound`, `InvalidInput` for a foreign file or another run's `secrets`, `CorruptFile`, `Conflict`
    when `directory` holds something, `InvalidConfig` for a database elsewhere, `OutOfDisk`.
    """
    if not file.is_file():
        raise NotFound(f"There is no backup {file}; name a file that `bithaul backup create` made.")
    directory = directory.absolute()
    _refuse_used(directory)
    aside = directory.with_name(f".{directory.name}.restoring-{(ids or SystemIds()).nonce()[:8]}")
    with file.open("rb") as stream:
        reader = ArchiveReader(stream, file)
        listed = reader.listed
        pepper = None if secrets is None else _pepper(secrets, listed)
        try:
            with writing(directory):
                aside.mkdir(parents=True)
                _refuse_full(aside, listed)
                on_size(listed.size)
                _write_files(reader, aside, on_progress)
            if pepper is not None:
                _write_pepper(aside, pepper)
            void = _verify(aside, file, listed, clock or SystemClock(), keeps_secrets=pepper is not None)
            with writing(directory):
                _sync(aside)
                _put_in_place(aside, directory)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Restored(
        dir=str(directory),
        run=listed.run,
        version=listed.version,
        files=len(listed.files),
        size=listed.size,
        created_at=listed.created_at,
        clients_to_rotate=void,
        settings_to_give=_left_out(directory),
    )


def _left_out(directory: Path) -> list[str]:
    path = directory / SETTINGS
    return [SECRET] if path.is_file() and lacks_secret(path.read_text()) else []


def _refuse_used(directory: Path) -> None:
    if directory.is_symlink() or (
        directory.exists() and (not directory.is_dir() or next(directory.iterdir(), None) is not None)
    ):
        raise Conflict(f"{directory} holds something and is not touched; give a --dir that is new or empty.")


def _refuse_full(aside: Path, listed: BackupList) -> None:
    wanted = sum(file.size for file in listed.files) + _SPARE
    free = shutil.disk_usage(aside).free
    if free < wanted:
        raise OutOfDisk(
            f"The run needs {wanted // 2**20} MiB and {free // 2**20} MiB are free; make room and try again."
        )


def _pepper(secrets: Path, listed: BackupList) -> bytes:
    """The pepper of the old run's folder of secrets, if it is that of the backup."""
    if not (secrets / secretfiles.PEPPER).is_file():
        raise NotFound(f"There is no {secrets / secretfiles.PEPPER}; name the old run's folder secrets/.")
    pepper = secretfiles.read_or_create(secrets, secretfiles.PEPPER)
    if listed.pepper_check is None or pepper_check(pepper) != listed.pepper_check:
        raise InvalidInput(
            f"{secrets} does not belong to this backup; name the secrets/ of the run it was made of, or "
            "leave --secrets out and give every machine a new secret."
        )
    return pepper


def _write_files(reader: ArchiveReader, aside: Path, on_progress: Progress) -> None:
    blobs = LocalBlobStore(aside / "blobs", incoming=aside / "incoming")
    places: dict[str, Path] = {}
    done = 0
    for file, pieces in reader.members():

        def counted(pieces: Iterable[bytes] = pieces) -> Iterable[bytes]:
            nonlocal done
            for piece in pieces:
                yield piece
                done += len(piece)
                on_progress(done)

        if file.is_blob:
            blob = blobs.put(counted(), name=file.sha256)
            if blob.sha256 != file.sha256:
                raise CorruptFile(f"{file.path} in the backup does not have its SHA-256; use another backup.")
            places[file.sha256] = blob.path
        else:
            places[file.sha256] = _write(aside, file, counted())
    for file in reader.listed.files:
        if not (aside / file.path).exists():
            with places[file.sha256].open("rb") as source:
                _write(aside, file, iter(lambda: source.read(2**20), b""))


def _write(aside: Path, file: BackupFile, pieces: Iterable[bytes]) -> Path:
    target = aside / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.path == DATABASE:
        target.touch(mode=0o600)
    with target.open("wb") as stream:
        for piece in pieces:
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    if file_sha256(target) != file.sha256:
        raise CorruptFile(f"{file.path} does not have its SHA-256 after it was written; check the disk.")
    return target


def _write_pepper(aside: Path, pepper: bytes) -> None:
    secretfiles.read_or_create(aside / "secrets", secretfiles.PEPPER, random=lambda _: pepper)


def _verify(aside: Path, file: Path, listed: BackupList, clock: Clock, *, keeps_secrets: bool) -> list[str]:
    """Judge the run as a start would, and that no blob is missing; the clients whose secrets are void."""
    if not (aside / DATABASE).is_file():
        raise CorruptFile(f"The backup {file} has no database; use another one.")
    check_database(aside / DATABASE)
    settings = load_settings(aside)
    if settings.database_url:
        raise InvalidConfig(
            "The setting database_url names another database than the backup's; unset it and try again."
        )
    with closing(open_coordinator(settings, clock=clock)) as c:
        with c.database.write() as connection:
            forget_ways_in(connection)
            run = runs.find_run(connection)
            newest = None if run is None else versions.newest_version(connection, run.id).version
            if run is None or (run.name, newest) != (listed.run, listed.version):
                raise CorruptFile(f"The database of {file} is not that of its list; use another backup.")
            missing = blobs_wanted(connection) - {sha256 for sha256, _ in c.blobs.stored()}
            if missing:
                raise CorruptFile(
                    f"{file} lacks {len(missing)} files its database names; use another backup."
                )
            detail = f"backup of {listed.created_at:.0f}, version {listed.version}"
            record(
                connection, clock.now(), actor="cli", action="backup.restore", subject=run.name, detail=detail
            )
        check_run(c)
        return [] if keeps_secrets else _with_secrets(c)


def _with_secrets(c: Coordinator) -> list[str]:
    """Public clients have no secret, and no hint of one."""
    return [client.id for client in list_clients(c) if client.hint and not client.disabled]


def _sync(aside: Path) -> None:
    """Files were synced one by one; their names are now."""
    for folder in (aside, *(path for path in aside.rglob("*") if path.is_dir())):
        fsync_folder(folder)


def _put_in_place(aside: Path, directory: Path) -> None:
    if directory.exists():
        directory.rmdir()  # empty, or somebody was faster
    aside.rename(directory)
    fsync_folder(directory.parent)
