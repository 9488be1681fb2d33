"""A run's folder opened for a command on the coordinator's machine, with the coordinator running or not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bithaul.errors import InvalidConfig, OutOfDisk, Unavailable

if TYPE_CHECKING:
    from bithaul.coordinator.context import Coordinator

Directory = Annotated[Path, typer.Option("--dir", help="The run's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_FULL_BELOW = 2**20  # bytes; SQLite reports a full disk as "full" or as an I/O error


@contextmanager
def opened(directory: Path) -> Iterator[Coordinator]:
    """Raises `InvalidConfig` when there is no such folder, `OutOfDisk`, `Unavailable`."""
    from sqlalchemy.exc import DBAPIError

    from bithaul.coordinator.context import open_coordinator
    from bithaul.coordinator.settings import load_settings

    if not directory.is_dir():
        raise InvalidConfig(
            f"There is no run folder {directory}; make one with: bithaul up --dir {directory}"
        )
    settings = load_settings(directory)
    try:
        with closing(open_coordinator(settings)) as c:
            yield c
    except (Unavailable, DBAPIError) as error:
        if shutil.disk_usage(directory).free >= _FULL_BELOW:
            raise
        raise OutOfDisk(
            f"The database in {directory} cannot be written: the disk is full; free some space and try again."
        ) from error


def shown_time(seconds: float) -> str:
    """Such as 2027-01-15 08:00 UTC."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
