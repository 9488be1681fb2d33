"""Rows of the audit: which merged updates wait to be repeated, and how alike the repetitions were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, exists, func, select, update

from bithaul.coordinator.database.ledger import ReportRow, report_columns, report_row
from bithaul.coordinator.database.prepared import Prepared, insert_row
from bithaul.coordinator.database.tables import leases, repetitions, reports, versions
from bithaul.exchange.messages import Verdict
from bithaul.rounds.audits import TRIES
from bithaul.rounds.gates import AUDIT_COSINE, AUDIT_MISSES
from bithaul.rounds.leases import LeaseState

_FIRST = leases.alias("first_lease")
_TRY = leases.alias("try")
_OF_REPORT = _TRY.c.repeats == reports.c.seq
_MERGED = (  # no term but `repeat` fits an index, so what was merged in all the time is not looked through
    _FIRST.c.repeat,
    func.coalesce(reports.c.run_id, 0) == bindparam("run"),
    reports.c.verdict == Verdict.ACCEPTED,
    func.coalesce(reports.c.merged_in, 0) > 0,
    reports.c.discarded_in.is_(None),
    reports.c.blob_sha256.is_not(None),
    versions.c.retired_at.is_(None),
)
_WAITING = (
    select(*report_columns())
    .join(_FIRST, reports.c.lease_id == _FIRST.c.id)
    .join(
        versions,
        (versions.c.run_id == reports.c.run_id) & (versions.c.version == reports.c.base_version),
    )
    .where(*_MERGED)
    .order_by(_FIRST.c.id)
)
_ALL_WAITING = Prepared(_WAITING)
_FREE = Prepared(
    _WAITING.where(
        reports.c.worker != bindparam("worker"),
        versions.c.lineage == bindparam("lineage"),
        ~exists().where(
            _OF_REPORT, (_TRY.c.worker == bindparam("worker")) | (_TRY.c.state == LeaseState.OPEN)
        ),
        select(func.count()).where(_OF_REPORT).correlate(reports).scalar_subquery() < TRIES,
    )
)
_DONE = Prepared(select(exists().where(repetitions.c.first == bindparam("report"))))
_OPEN_COUNT = Prepared(
    select(func.count()).where(
        leases.c.run_id == bindparam("run"),
        leases.c.state == LeaseState.OPEN,
        leases.c.repeats.is_not(None),
    )
)
_NEWEST = Prepared(
    select(repetitions.c.likeness, repetitions.c.repeated_by)
    .where(repetitions.c.worker == bindparam("worker"), repetitions.c.run_id == bindparam("run"))
    .order_by(repetitions.c.second.desc())
    .limit(AUDIT_MISSES)
)


@dataclass(frozen=True)
class Outcome:
    """Two runs of a task, compared."""

    likeness: float
    by: str

    @property
    def alike(self) -> bool:
        return self.likeness >= AUDIT_COSINE


def waiting(connection: Connection, run_id: int) -> list[ReportRow]:
    """Merged updates that wait to be repeated and still can be, the oldest first."""
    return [report_row(row) for row in _ALL_WAITING.all(connection, run=run_id)]


def waiting_for(connection: Connection, run_id: int, *, worker: str, lineage: int) -> list[ReportRow]:
    """Of these, what nobody repeats now and this worker neither did nor tried."""
    found = _FREE.all(connection, run=run_id, worker=worker, lineage=lineage)
    return [report_row(row) for row in found]


def is_done(connection: Connection, report: int) -> bool:
    row = _DONE.first(connection, report=report)
    return bool(row and row[0])


def open_count(connection: Connection, run_id: int) -> int:
    """How many repetitions are under way."""
    row = _OPEN_COUNT.first(connection, run=run_id)
    return int(row[0]) if row else 0


def newest(connection: Connection, run_id: int, worker: str) -> list[Outcome]:
    """The last repetitions of tasks of this worker, as many as a strike takes, the newest last."""
    found = _NEWEST.all(connection, run=run_id, worker=worker)
    return [Outcome(float(likeness), by) for likeness, by in reversed(found)]


def insert(
    connection: Connection, first: ReportRow, second: ReportRow, *, likeness: float, now: float
) -> None:
    insert_row(
        connection,
        repetitions,
        {
            "first": first.seq,
            "second": second.seq,
            "run_id": first.run_id,
            "task_id": first.task_id,
            "worker": first.worker,
            "repeated_by": second.worker,
            "likeness": likeness,
            "made_at": now,
        },
    )
    give_up(connection, [first])


def give_up(connection: Connection, rows: Sequence[ReportRow]) -> None:
    """These are not to be repeated any more."""
    ids = [row.lease_id for row in rows]
    connection.execute(update(leases).where(leases.c.id.in_(ids)).values(repeat=False))


def forget_unreported(connection: Connection, run_id: int, *, before: float) -> None:
    """Of leases that ended before that moment without an update to repeat, none is waited for any more."""
    accepted = exists().where(
        reports.c.lease_id == leases.c.id,
        reports.c.verdict == Verdict.ACCEPTED,
        reports.c.discarded_in.is_(None),
    )
    connection.execute(
        update(leases)
        .where(leases.c.run_id == run_id, leases.c.repeat, leases.c.ended_at < before, ~accepted)
        .values(repeat=False)
    )


def being_repeated(connection: Connection, run_id: int) -> set[int]:
    """Reports whose repetition is under way."""
    query = select(leases.c.repeats).where(
        leases.c.run_id == run_id, leases.c.state == LeaseState.OPEN, leases.c.repeats.is_not(None)
    )
    return {int(seq) for (seq,) in connection.execute(query)}


@dataclass(frozen=True)
class Counts:
    """Of one worker: `repeated` tasks by others, of which `differed` came out differently; `made` by it."""

    repeated: int = 0
    differed: int = 0
    made: int = 0


def counts(connection: Connection, run_id: int) -> Mapping[str, Counts]:
    """By worker; sums over the rows, never counters."""
    here = repetitions.c.run_id == run_id
    misses = func.count().filter(repetitions.c.likeness < AUDIT_COSINE)
    of_it = select(repetitions.c.worker, func.count(), misses).where(here).group_by(repetitions.c.worker)
    by_it = select(repetitions.c.repeated_by, func.count()).where(here).group_by(repetitions.c.repeated_by)
    made = {worker: int(count) for worker, count in connection.execute(by_it)}
    found = {worker: Counts(made=count) for worker, count in made.items()}
    for worker, repeated, differed in connection.execute(of_it):
        found[worker] = Counts(int(repeated), int(differed), made.get(worker, 0))
    return found
