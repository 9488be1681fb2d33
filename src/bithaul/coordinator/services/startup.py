"""What must hold before a coordinator serves: the newest version reads back and fits the run's model.

Refuses to start with a sentence otherwise, and never makes new weights by itself.
"""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import make_url

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import ledger, runs, versions
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.identity.audit import DETAIL, last_details, record
from bithaul.coordinator.services.retention import delete_orphans
from bithaul.coordinator.settings import Settings
from bithaul.errors import CorruptFile, LayoutMismatch, NotFound, OutOfDisk
from bithaul.exchange.weights import open_weights

SETTING_CHANGE = "setting.change"


def check_run(c: Coordinator) -> None:
    """Raises `CorruptFile` or `LayoutMismatch`. Clears unfinished uploads and orphan blobs. No run: fine.

    Reads the newest weights, the theta and momentum behind them and every update not merged yet, and compares
    their SHA-256. Nothing is guessed: a run whose files do not match its rows needs a backup or an operator.
    """
    c.blobs.clear_incoming(older_than=c.clock.now())
    with c.database.read() as connection:
        run = runs.find_run(connection)
        if run is None:
            return
        newest = versions.newest_version(connection, run.id)
        pending = [r.blob_sha256 for r in ledger.unmerged(connection, run.id)]
    if run.layout.hash != run.layout_hash:
        raise LayoutMismatch(
            f"The run {run.name!r} was made with the layout {run.layout_hash[:12]}..., this bithaul derives "
            f"{run.layout.hash[:12]}... from its model; start it with the version that made it."
        )
    _check_newest(c, run, newest)
    delete_orphans(c, older_than=c.clock.now())
    try:
        for sha256 in (*_besides(newest), *pending):
            if sha256:
                c.blobs.verify(sha256)
    except (CorruptFile, NotFound) as error:
        raise CorruptFile(f"A file of the run {run.name!r} is damaged: {error.message} {_HELP}") from error


def note_start(c: Coordinator) -> None:
    """An audit row, which the curves show as a mark, and one for each setting that is not as it was before.

    Settings come from a file, the environment and arguments, so who changed one is not known; that it is in
    force from this start on is. A full disk keeps no coordinator from starting.
    """
    now = c.clock.now()
    with suppress(OutOfDisk), c.database.write() as connection:
        run = runs.find_run(connection)
        name = "" if run is None else run.name
        record(connection, now, actor="system", action="coordinator.start", subject=name)
        before = last_details(connection, SETTING_CHANGE)
        for setting, value in settings_to_note(c.settings).items():
            if value != before.get(setting, _default(setting)):
                record(connection, now, actor="system", action=SETTING_CHANGE, subject=setting, detail=value)


def settings_to_note(settings: Settings) -> dict[str, str]:
    """Every setting as text without passwords. Not where the run is served: `up` chooses a port anew."""
    names = [name for name in Settings.model_fields if name not in {"directory", "port"}]
    noted = {name: str(getattr(settings, name))[:DETAIL] for name in names}
    noted["oidc_client_secret"] = "set" if settings.oidc_client_secret else ""
    if settings.database_url:
        noted["database_url"] = make_url(settings.database_url).render_as_string(hide_password=True)[:DETAIL]
    return noted


def _default(setting: str) -> str:
    return str(Settings.model_fields[setting].default)


_HELP = "Restore it from a backup; weights are never made anew by themselves."


def _besides(newest: VersionRow) -> list[str]:
    """The files of a snapshot that are not the published one, which is read before."""
    return [sha256 for sha256 in newest.snapshot if sha256 != newest.sha256]


def _check_newest(c: Coordinator, run: RunRow, newest: VersionRow) -> None:
    try:
        blob = c.blobs.verify(newest.sha256)
        stored = open_weights(blob.path, expected_count=run.layout.size)
    except NotFound as error:
        raise CorruptFile(
            f"The weights of version {newest.version} are missing from {c.settings.blob_folder}. {_HELP}"
        ) from error
    except CorruptFile as error:
        if error.error_code == "weights_count":
            raise LayoutMismatch(
                f"The weights of version {newest.version} do not fit the run's model: {error.message} {_HELP}"
            ) from error
        raise CorruptFile(f"Version {newest.version} is damaged: {error.message} {_HELP}") from error
    if stored.version != newest.version:
        raise CorruptFile(
            f"The weights of version {newest.version} say that they are version {stored.version}. {_HELP}"
        )
