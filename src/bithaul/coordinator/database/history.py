"""What happened, for people: series of versions, losses and speeds; who did what. Reads only.

Each function is one statement, with few columns, because a page asks again every few seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Integer, bindparam, cast, func, literal, literal_column, select

from bithaul.coordinator.database.tables import reports, scores, telemetry, versions, workers


@dataclass(frozen=True)
class VersionPoint:
    """One version. Losses in nats per counted token; `low` and `high` bound its updates' training losses."""

    version: int
    time: float
    tokens_total: int
    tokens: int
    train_loss: float | None
    heldout_loss: float | None
    staleness: float
    low: float | None
    high: float | None


def version_series(connection: Connection, run_id: int, *, after: int = 0) -> list[VersionPoint]:
    """All versions with a number above `after`, oldest first."""
    spread = (
        select(
            reports.c.merged_in,
            func.min(reports.c.loss_mean).label("low"),
            func.max(reports.c.loss_mean).label("high"),
        )
        .where(
            reports.c.run_id == run_id,
            reports.c.verdict == "accepted",
            reports.c.merged_in > after,
        )
        .group_by(reports.c.merged_in)
        .subquery()
    )
    query = (
        select(
            versions.c.version,
            versions.c.created_at,
            versions.c.tokens_total,
            versions.c.tokens,
            versions.c.train_loss,
            versions.c.heldout_loss,
            versions.c.staleness,
            spread.c.low,
            spread.c.high,
        )
        .join(spread, spread.c.merged_in == versions.c.version, isouter=True)
        .where(versions.c.run_id == run_id, versions.c.version > after)
        .order_by(versions.c.version)
    )
    return [VersionPoint(*row) for row in connection.execute(query)]


@dataclass(frozen=True)
class Rejection:
    """A report that did not count, and why."""

    time: float
    worker: str
    task: int
    verdict: str
    code: str
    reason: str
    base_version: int


_REFUSED = reports.c.verdict != literal_column("'accepted'")  # in these letters, for the index of the few


def rejections(
    connection: Connection, run_id: int, *, count: int, worker: str | None = None
) -> list[Rejection]:
    """The newest reports that were not accepted, newest first."""
    query = (
        select(
            reports.c.received_at,
            reports.c.worker,
            reports.c.task_id,
            reports.c.verdict,
            reports.c.code,
            reports.c.reason,
            reports.c.base_version,
        )
        .where(reports.c.run_id == run_id, _REFUSED)
        .order_by(reports.c.seq.desc())
        .limit(count)
    )
    if worker is not None:
        query = query.where(reports.c.worker == worker)
    return [Rejection(*row) for row in connection.execute(query)]


@dataclass(frozen=True)
class Account:
    """One worker's reports of a run, by verdict; sums over the ledger, never counters."""

    accepted: int = 0
    too_late: int = 0
    stale: int = 0
    rejected: int = 0
    tokens: int = 0
    seconds: float = 0.0
    mean_staleness: float = 0.0
    clipped: int = 0  # of the accepted ones, shortened by a gate
    compared: int = 0  # judged and not merged: repetitions, and what came from a worker without weight


def accounts(connection: Connection, run_id: int) -> Mapping[str, Account]:
    """By worker, from the whole ledger."""
    return Accounts().of(connection, run_id)


class Accounts:
    """Accounts that go on from where the last look at the ledger ended, so that a page may ask often.

    What they sum of a row never changes after its judgement, and rows come in the order of `seq`.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._run = 0
        self._newest = 0  # the last row that is in the sums
        self._sums: dict[tuple[str, str], Sequence[float]] = {}  # by worker and verdict

    def of(self, connection: Connection, run_id: int) -> Mapping[str, Account]:
        with self._lock:
            newest = connection.execute(select(func.max(reports.c.seq))).scalar_one() or 0
            if run_id != self._run or newest < self._newest:  # another ledger than the last time
                self._run, self._newest, self._sums = run_id, 0, {}
            for worker, verdict, *sums in connection.execute(
                _SUMS, {"run": run_id, "after": self._newest, "newest": newest}
            ):
                before = self._sums.get((worker, verdict), [0.0] * len(sums))
                self._sums[worker, verdict] = [a + float(b) for a, b in zip(before, sums, strict=True)]
            self._newest = max(newest, self._newest)
            found: dict[str, dict[str, Any]] = {}
            for (worker, verdict), (count, tokens, seconds, staleness, clipped) in self._sums.items():
                values = found.setdefault(worker, {})
                values[verdict] = int(count)
                if verdict == "accepted":
                    values |= {
                        "tokens": int(tokens),
                        "seconds": seconds,
                        "mean_staleness": staleness / count,
                        "clipped": int(clipped),
                    }
            return {worker: Account(**values) for worker, values in found.items()}


_SUMS = (
    select(
        reports.c.worker,
        reports.c.verdict,
        func.count(),
        func.sum(reports.c.tokens),
        func.sum(reports.c.seconds),
        func.sum(reports.c.staleness),
        func.count().filter(reports.c.clip < 1),
    )
    .where(
        reports.c.run_id == bindparam("run"),
        reports.c.seq > bindparam("after"),
        reports.c.seq <= bindparam("newest"),
    )
    .group_by(reports.c.worker, reports.c.verdict)
)


def capabilities(connection: Connection) -> Mapping[str, Mapping[str, Any]]:
    """What each registered machine says of itself; empty before it has calibrated."""
    rows = connection.execute(select(workers.c.id, workers.c.capabilities))
    return {worker: found or {} for worker, found in rows}


def speed_buckets(
    connection: Connection, *, start: float, width: float, count: int, only: Collection[str] | None = None
) -> Mapping[str, Sequence[float | None]]:
    """Mean tokens per second of each worker in `count` buckets of `width` seconds; None without a word."""
    places = (telemetry.c.time - literal(start)) / literal(width)
    if connection.dialect.name == "postgresql":  # its cast rounds, SQLite's cuts off
        places = func.floor(places)
    index = cast(places, Integer).label("bucket")
    query = (
        select(telemetry.c.worker, index, func.avg(telemetry.c.tokens_per_second))
        .where(
            telemetry.c.time >= start,
            telemetry.c.time < start + width * count,
            telemetry.c.tokens_per_second > 0,
        )
        .group_by(telemetry.c.worker, index)
    )
    if only is not None:
        query = query.where(telemetry.c.worker.in_(only))
    found: dict[str, list[float | None]] = {}
    for name, bucket, speed in connection.execute(query):
        if 0 <= bucket < count:
            found.setdefault(name, [None] * count)[int(bucket)] = float(speed)
    return found


def reports_of(
    connection: Connection, run_id: int, worker: str | None = None, *, count: int, task: int | None = None
) -> Sequence[Mapping[str, Any]]:
    """The newest reports of a worker or of a task, newest first."""
    query = (
        select(
            reports.c.seq,
            reports.c.received_at.label("time"),
            reports.c.task_id.label("task"),
            reports.c.verdict,
            reports.c.code,
            reports.c.reason,
            reports.c.base_version,
            reports.c.staleness,
            reports.c.tokens,
            reports.c.seconds,
            reports.c.loss_mean.label("loss"),
            (reports.c.loss_last - reports.c.loss_first).label("loss_change"),
            reports.c.agreement,
            scores.c.score,
            reports.c.merged_in,
        )
        .join(scores, scores.c.report == reports.c.seq, isouter=True)
        .where(reports.c.run_id == run_id)
        .order_by(reports.c.seq.desc())
        .limit(count)
    )
    if worker is not None:
        query = query.where(reports.c.worker == worker)
    if task is not None:
        query = query.where(reports.c.task_id == task)
    return [dict(row) for row in connection.execute(query).mappings()]
