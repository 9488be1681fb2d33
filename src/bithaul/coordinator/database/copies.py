"""Copies of the SQLite file: taken while others write, compacted, and judged. Knows no table.

`Connection.backup` reads one moment of the database, its WAL included; a copy of the file would not.
Compacting writes every page anew, so that nothing of a deleted row stays in a free page.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bithaul.errors import CorruptFile, OutOfDisk, Unavailable

_WAIT = 30.0  # seconds for a lock


def copy_database(source: Path, target: Path) -> None:
    """Copy the live database `source` to the new file `target`, mode 0600.

    Raises `CorruptFile`, `OutOfDisk`, `Unavailable`.
    """
    target.touch(mode=0o600, exist_ok=False)
    with (
        _translated(source),
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=_WAIT)) as live,
        closing(sqlite3.connect(target, timeout=_WAIT)) as copy,
    ):
        live.backup(copy)


def compact_database(path: Path) -> None:
    """Rewrite a database nobody else has open, as one file without a WAL. Raises as `copy_database`."""
    with _translated(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete=ON").fetchall()
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()


def check_database(path: Path) -> None:
    """Read all of a database. Raises `CorruptFile` when it is damaged or its rows contradict each other."""
    with _translated(path), closing(sqlite3.connect(path, timeout=_WAIT)) as connection:
        connection.execute("PRAGMA trusted_schema=OFF").fetchall()
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise CorruptFile(f"The database {path} is damaged ({found}); use a backup that is whole.")
        if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise CorruptFile(f"Rows of the database {path} name others that it lacks; use another backup.")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise OutOfDisk(
                f"The disk is full while {path} is copied; free some space, try again."
            ) from error
        if "locked" in str(error) or "busy" in str(error):
            raise Unavailable(f"The database {path} is busy; try again.") from error
        raise CorruptFile(f"The database {path} is damaged ({error}); use a backup that is whole.") from error
