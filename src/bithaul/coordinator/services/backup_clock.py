"""Backups by the clock: when the newest file is old enough, another one is made and the oldest goes.

Which files are ours is told by their names alone, and only those are ever deleted, after the new one is
complete. So a folder that several runs share, or that somebody tidies by hand, is no problem.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs
from bithaul.coordinator.services.backup import create_backup
from bithaul.errors import NotFound

HOUR = 3600.0
_TIME = "%Y%m%dT%H%M%SZ"


def back_up_when_due(c: Coordinator) -> str:
    """Raises what `create_backup` does, and `NotFound` when the folder is gone: a disk is unplugged."""
    with c.database.read() as connection:
        run = runs.find_run(connection)
    if run is None:
        return "no run yet"
    folder = Path(c.settings.backup_folder)
    if not folder.is_dir():
        raise NotFound(f"The folder for backups {folder} is not there; mount it, or make it.")
    made = made_before(folder, run.name)
    now = c.clock.now()
    if made and now - made[-1][0] < c.settings.backup_every_hours * HOUR:
        return f"{made[-1][1].name} is the newest of {len(made)}"
    out = folder / f"{run.name}-{datetime.fromtimestamp(now, UTC):{_TIME}}.bithaul"
    create_backup(c, out, on_size=_nobody, on_progress=_nobody, actor="system")
    for _, old in made[: max(0, len(made) + 1 - c.settings.backup_keep)]:
        old.unlink(missing_ok=True)
    return f"{out.name} made, {min(len(made) + 1, c.settings.backup_keep)} kept"


def made_before(folder: Path, run: str) -> list[tuple[float, Path]]:
    """The backups of this run that the clock has made: when, and where; the oldest first."""
    name = re.compile(re.escape(run) + r"-(\d{8}T\d{6}Z)\.bithaul")
    found = [(name.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(
        (datetime.strptime(match[1], _TIME).replace(tzinfo=UTC).timestamp(), path)
        for match, path in found
        if match is not None
    )


def _nobody(_bytes: int) -> None:
    """The page of services says when it was made."""
