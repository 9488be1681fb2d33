"""Rows of the loss score: which reports wait for one, and what was found."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, func, select, update

from bithaul.coordinator.database.ledger import ReportRow, report_columns, report_row
from bithaul.coordinator.database.prepared import Prepared, insert_row, parts
from bithaul.coordinator.database.tables import reports, scores, versions
from bithaul.exchange.messages import Verdict
from bithaul.rounds.scores import Score

_WAITING = Prepared(
    select(*report_columns())
    .join(
        versions,
        (versions.c.run_id == reports.c.run_id) & (versions.c.version == reports.c.base_version),
    )
    .where(  # no term but `to_score` fits an index, so what was ever accepted is not looked through
        reports.c.to_score,
        func.coalesce(reports.c.run_id, 0) == bindparam("run"),
        reports.c.verdict == Verdict.ACCEPTED,
        reports.c.discarded_in.is_(None),
        reports.c.blob_sha256.is_not(None),
        versions.c.retired_at.is_(None),
    )
    .order_by(reports.c.seq)
)
_LAST = Prepared(
    select(scores.c.made_at, scores.c.seconds)
    .where(scores.c.run_id == bindparam("run"))
    .order_by(scores.c.made_at.desc())
    .limit(1)
)


def waiting(connection: Connection, run_id: int) -> list[ReportRow]:
    """Accepted updates that wait for a score and whose files are still there, the oldest first."""
    return [report_row(row) for row in _WAITING.all(connection, run=run_id)]


def last(connection: Connection, run_id: int) -> tuple[float, float] | None:
    """When the newest score was made and how many seconds it took."""
    row = _LAST.first(connection, run=run_id)
    return None if row is None else (float(row[0]), float(row[1]))


def insert(connection: Connection, report: ReportRow, found: Score, *, seconds: float, now: float) -> None:
    insert_row(
        connection,
        scores,
        {
            "report": report.seq,
            "run_id": report.run_id,
            "worker": report.worker,
            "own": found.own,
            "other": found.other,
            "score": found.value,
            "seconds": seconds,
            "made_at": now,
        },
    )
    give_up(connection, [report.seq])


def give_up(connection: Connection, seqs: Sequence[int]) -> None:
    """These reports do not wait for a score any more."""
    for part in parts(seqs):
        connection.execute(update(reports).where(reports.c.seq.in_(part)).values(to_score=False))


def give_up_lost(connection: Connection, run_id: int) -> None:
    """Nor do those that were discarded, or whose update or base is gone."""
    left = {report.seq for report in waiting(connection, run_id)}
    flagged = connection.execute(select(reports.c.seq).where(reports.c.to_score)).scalars()
    give_up(connection, [int(seq) for seq in flagged if seq not in left])
