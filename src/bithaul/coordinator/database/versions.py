"""Rows of weight versions. A row exists only after its blob is durable: reading one is the announcement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import Connection, bindparam, select

from bithaul.coordinator.database.prepared import Prepared, insert_row, update_row
from bithaul.coordinator.database.tables import versions


@dataclass(frozen=True)
class VersionRow:
    """`tokens` are this version's, `tokens_total` all up to it; losses in nats per counted token.

    `sha256` and `size` are of the published file, which workers fetch and losses are measured on;
    `theta_sha256` and `momentum_sha256` are what the next step starts from, kept with the newest versions.
    """

    run_id: int
    version: int
    sha256: str
    size: int
    created_at: float
    theta_sha256: str | None = None  # the same file as `sha256` when nothing is rounded
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
    delta_sha256: str | None = None  # the way from the version before; None: there is none, or retired

    @property
    def snapshot(self) -> list[str]:
        """SHA-256 of the files that a step starts from, those still kept."""
        return [sha256 for sha256 in (self.theta_sha256, self.momentum_sha256) if sha256]


_COLUMNS = [versions.c[field.name] for field in fields(VersionRow)]
_OF_RUN = select(*_COLUMNS).where(versions.c.run_id == bindparam("run"))
_VERSION = Prepared(_OF_RUN.where(versions.c.version == bindparam("number")))
_NEWEST = Prepared(_OF_RUN.order_by(versions.c.version.desc()).limit(bindparam("count")))
_ALL = Prepared(_OF_RUN.order_by(versions.c.version))


def newest_version(connection: Connection, run_id: int) -> VersionRow:
    """The version in force. A run always has one."""
    (row,) = _NEWEST.all(connection, run=run_id, count=1)
    return VersionRow(*row)


def find_version(connection: Connection, run_id: int, version: int) -> VersionRow | None:
    row = _VERSION.first(connection, run=run_id, number=version)
    return None if row is None else VersionRow(*row)


def list_versions(connection: Connection, run_id: int) -> Sequence[VersionRow]:
    return [VersionRow(*row) for row in _ALL.all(connection, run=run_id)]


def newest_versions(connection: Connection, run_id: int, *, count: int) -> Sequence[VersionRow]:
    """The last `count`, oldest first."""
    return [VersionRow(*row) for row in _NEWEST.all(connection, run=run_id, count=count)][::-1]


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
    insert_row(connection, versions, asdict(row))


def update_version(connection: Connection, run_id: int, version: int, **values: object) -> None:
    update_row(connection, versions, {"run_id": run_id, "version": version}, values)
