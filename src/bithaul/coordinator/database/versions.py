"""Rows of weight versions. A row exists only after its blob is durable: reading one is the announcement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from bithaul.coordinator.database.tables import versions

_NEWEST = (
    select(versions).where(versions.c.run_id == bindparam("run")).order_by(versions.c.version.desc()).limit(1)
)
_VERSION = select(versions).where(
    versions.c.run_id == bindparam("run"), versions.c.version == bindparam("number")
)


@dataclass(frozen=True)
class VersionRow:
    """`tokens` are this version's, `tokens_total` all up to it; losses in nats per counted token."""

    run_id: int
    version: int
    sha256: str
    size: int
    created_at: float
    momentum_sha256: str | None = None
    retired_at: float | None = None
    pinned: bool = False
    reports: int = 0
    contributors: int = 0
    tokens: int = 0
    tokens_total: int = 0
    staleness: float = 0.0
    step_norm: float = 0.0
    train_loss: float | None = None
    heldout_loss: float | None = None
    heldout_tokens: int | None = None
    probe_leased_at: float | None = None
    merge_seconds: float = 0.0
    outer_step: Mapping[str, Any] | None = None  # the numbers it was made with, for a replay
    lineage: int = 1
    restores: int | None = None  # a rollback made it: the version whose weights it has again
    automatic: bool = False  # that rollback
    active_seconds: float | None = None  # of the run when it was made


def newest_version(connection: Connection, run_id: int) -> VersionRow:
    """The version in force. A run always has one."""
    return VersionRow(**connection.execute(_NEWEST, {"run": run_id}).mappings().one())


def find_version(connection: Connection, run_id: int, version: int) -> VersionRow | None:
    row = connection.execute(_VERSION, {"run": run_id, "number": version}).mappings().first()
    return None if row is None else VersionRow(**row)


def list_versions(connection: Connection, run_id: int) -> Sequence[VersionRow]:
    query = select(versions).where(versions.c.run_id == run_id).order_by(versions.c.version)
    return [VersionRow(**row) for row in connection.execute(query).mappings()]


def newest_versions(connection: Connection, run_id: int, *, count: int) -> Sequence[VersionRow]:
    """The last `count`, oldest first."""
    query = (
        select(versions).where(versions.c.run_id == run_id).order_by(versions.c.version.desc()).limit(count)
    )
    return [VersionRow(**row) for row in connection.execute(query).mappings()][::-1]


def live(rows: Sequence[VersionRow]) -> list[VersionRow]:
    """Those of `rows`, oldest first, that lead to the newest: without what rollbacks gave up."""
    found: list[VersionRow] = []
    limit = rows[-1].version
    for row in reversed(rows):
        if row.version <= limit:
            found.append(row)
            limit = row.restores if row.restores is not None else limit
    return found[::-1]


def insert_version(connection: Connection, row: VersionRow) -> None:
    connection.execute(insert(versions).values(**asdict(row)))


def update_version(connection: Connection, run_id: int, version: int, **values: object) -> None:
    connection.execute(
        update(versions).where(versions.c.run_id == run_id, versions.c.version == version).values(**values)
    )
