"""The ledger: one row per judged report, in order of judgement.

A receipt is read from its row and never changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Column, Connection, bindparam, exists, func, or_, select, update

from bithaul.coordinator.database.prepared import Prepared, Values, insert_row, parts
from bithaul.coordinator.database.tables import reports
from bithaul.exchange.messages import Receipt, Verdict
from bithaul.rounds.gates import Seen
from bithaul.rounds.rollback import MergedReport


@dataclass(frozen=True)
class ReportRow:
    seq: int
    run_id: int
    task_id: int
    lease_id: int
    worker: str
    fence: str
    verdict: Verdict
    code: str
    reason: str
    received_at: float
    base_version: int
    staleness: int
    examples: int
    tokens: int
    steps: int
    seconds: float
    loss_first: float
    loss_last: float
    loss_mean: float
    norm: float
    weight: float
    clip: float
    credited: int
    payload_sha256: str | None
    blob_sha256: str | None
    merged_in: int | None
    discarded_in: int | None

    @property
    def receipt(self) -> Receipt:
        return Receipt(
            task=self.task_id,
            fence=self.fence,
            verdict=self.verdict,
            code=self.code,
            reason=self.reason,
            tokens=self.tokens,
            staleness=self.staleness,
            clip=self.clip,
        )


_NAMES = [field.name for field in fields(ReportRow)]
_COLUMNS = [reports.c[name] for name in _NAMES]
_VERDICT = _NAMES.index("verdict")
_UNMERGED = (
    reports.c.run_id == bindparam("run"),
    reports.c.verdict == Verdict.ACCEPTED,
    reports.c.merged_in.is_(None),
    reports.c.discarded_in.is_(None),
)
_WAITING = Prepared(select(*_COLUMNS).where(*_UNMERGED).order_by(reports.c.seq))
_WAITS = Prepared(select(exists().where(*_UNMERGED, reports.c.worker == bindparam("worker"))))
_UNMERGED_TOKENS = Prepared(select(func.coalesce(func.sum(reports.c.tokens), 0)).where(*_UNMERGED))
_UNMERGED_SUMS = Prepared(select(func.count(), func.min(reports.c.received_at)).where(*_UNMERGED))
_REPORT = Prepared(
    select(*_COLUMNS).where(
        reports.c.fence == bindparam("fence"),
        reports.c.task_id == bindparam("task"),
        reports.c.worker == bindparam("worker"),
    )
)
_BY_SEQ = Prepared(select(*_COLUMNS).where(reports.c.seq == bindparam("seq")))
_LAST_TOKENS = Prepared(
    select(reports.c.tokens)
    .where(
        reports.c.run_id == bindparam("run"),
        reports.c.verdict == Verdict.ACCEPTED,
        func.coalesce(reports.c.merged_in, 0) > 0,  # as no index has it: the newest are looked through
        reports.c.discarded_in.is_(None),
    )
    .order_by(reports.c.seq.desc())
    .limit(bindparam("count"))
)
_SIZES = Prepared(
    select(reports.c.worker, reports.c.norm * reports.c.clip, reports.c.steps)
    .where(
        reports.c.run_id == bindparam("run"),
        reports.c.verdict == Verdict.ACCEPTED,
        reports.c.discarded_in.is_(None),
    )
    .order_by(reports.c.seq.desc())
    .limit(bindparam("count"))
)
_COPIES = Prepared(
    select(
        exists().where(
            reports.c.payload_sha256 == bindparam("sha256"),
            reports.c.run_id == bindparam("run"),
            reports.c.verdict == Verdict.ACCEPTED,
            reports.c.worker != bindparam("worker"),
        )
    )
)

_PAYLOADS = Prepared(
    select(reports.c.blob_sha256)
    .where(
        reports.c.run_id == bindparam("run"),
        reports.c.verdict == Verdict.ACCEPTED,
        reports.c.worker != bindparam("worker"),
        reports.c.blob_sha256.is_not(None),
    )
    .order_by(reports.c.seq.desc())
    .limit(bindparam("count"))
)


def report_columns() -> list[Column[Any]]:
    """What `report_row` reads, in order."""
    return list(_COLUMNS)


def report_row(row: Values) -> ReportRow:
    values = list(row)
    values[_VERDICT] = Verdict(values[_VERDICT])
    return ReportRow(*values)


def find_report(connection: Connection, worker: str, *, task: int, fence: str) -> ReportRow | None:
    row = _REPORT.first(connection, fence=fence, task=task, worker=worker)
    return None if row is None else report_row(row)


def get_report(connection: Connection, seq: int) -> ReportRow:
    (row,) = _BY_SEQ.all(connection, seq=seq)
    return report_row(row)


def accepted_report(connection: Connection, task: int) -> ReportRow | None:
    query = select(*_COLUMNS).where(reports.c.task_id == task, reports.c.verdict == Verdict.ACCEPTED)
    row = connection.execute(query).first()
    return None if row is None else report_row(row)


def insert_report(connection: Connection, values: dict[str, Any]) -> ReportRow:
    insert_row(connection, reports, {**values, "merged_in": None, "discarded_in": None})
    report = find_report(connection, values["worker"], task=values["task_id"], fence=values["fence"])
    assert report is not None
    return report


def unmerged(connection: Connection, run_id: int) -> Sequence[ReportRow]:
    """Accepted reports that are in no version yet, by seq."""
    return [report_row(row) for row in _WAITING.all(connection, run=run_id)]


def unmerged_tokens(connection: Connection, run_id: int) -> int:
    """Tokens of the accepted reports that are in no version yet."""
    row = _UNMERGED_TOKENS.first(connection, run=run_id)
    return int(row[0]) if row else 0


def unmerged_sums(connection: Connection, run_id: int) -> tuple[int, float | None]:
    """How many accepted reports are in no version yet, and when the first of them came."""
    row = _UNMERGED_SUMS.first(connection, run=run_id)
    return (int(row[0]), row[1]) if row else (0, None)


def has_unmerged(connection: Connection, run_id: int, worker: str) -> bool:
    """Whether an accepted report of this worker is in no version yet."""
    row = _WAITS.first(connection, run=run_id, worker=worker)
    return bool(row and row[0])


def last_merged_tokens(connection: Connection, run_id: int, *, count: int) -> list[int]:
    """Tokens of the `count` last reports that are in a version, oldest first."""
    return [int(tokens) for (tokens,) in _LAST_TOKENS.all(connection, run=run_id, count=count)][::-1]


def last_accepted(connection: Connection, run_id: int, *, count: int) -> list[Seen]:
    """The sizes of the `count` last accepted updates as they were merged, oldest first."""
    return [Seen(*row) for row in _SIZES.all(connection, run=run_id, count=count)][::-1]


def has_payload_of_another(connection: Connection, run_id: int, worker: str, sha256: str) -> bool:
    """Whether this payload was accepted from another worker."""
    row = _COPIES.first(connection, run=run_id, worker=worker, sha256=sha256)
    return bool(row and row[0])


def last_payloads_of_others(connection: Connection, run_id: int, worker: str, *, count: int) -> list[str]:
    """Files of the `count` last accepted updates of other workers, as far as they are kept, newest first."""
    found = _PAYLOADS.all(connection, run=run_id, worker=worker, count=count)
    return [str(sha256) for (sha256,) in found]


def mark_merged(connection: Connection, seqs: Sequence[int], version: int) -> None:
    """Name the one version of these reports. ValueError if one was merged before or is not accepted."""
    changed = 0
    for part in parts(seqs):
        changed += connection.execute(
            update(reports)
            .where(
                reports.c.seq.in_(part),
                reports.c.merged_in.is_(None),
                reports.c.discarded_in.is_(None),
                reports.c.verdict == Verdict.ACCEPTED,
            )
            .values(merged_in=version)
        ).rowcount
    if changed != len(seqs):
        raise ValueError("an update would have been merged twice")


def note_agreements(connection: Connection, found: Mapping[int, float | None]) -> None:
    """How far each report, by seq, points where the others of its version do."""
    for seq, value in found.items():
        connection.execute(update(reports).where(reports.c.seq == seq).values(agreement=value))


def merged_after(connection: Connection, run_id: int, *, version: int) -> list[MergedReport]:
    """What was merged after that version and not given up, and what waits to be merged."""
    query = (
        select(
            reports.c.seq, reports.c.task_id, reports.c.worker, reports.c.merged_in, reports.c.base_version
        )
        .where(
            reports.c.run_id == run_id,
            reports.c.verdict == Verdict.ACCEPTED,
            reports.c.discarded_in.is_(None),
            or_(reports.c.merged_in.is_(None), reports.c.merged_in > version),
        )
        .order_by(reports.c.seq)
    )
    return [
        MergedReport(seq, task, worker, merged or 0, base)
        for seq, task, worker, merged, base in connection.execute(query)
    ]


def discard(connection: Connection, task_ids: Sequence[int], *, version: int) -> None:
    """A rollback that made this version gives the accepted reports of these tasks up."""
    connection.execute(
        update(reports)
        .where(reports.c.task_id.in_(task_ids), reports.c.verdict == Verdict.ACCEPTED)
        .values(discarded_in=version)
    )


def verdict_counts(connection: Connection, run_id: int) -> dict[str, int]:
    query = (
        select(reports.c.verdict, func.count()).where(reports.c.run_id == run_id).group_by(reports.c.verdict)
    )
    counts = {str(v): 0 for v in Verdict}
    counts.update({verdict: int(count) for verdict, count in connection.execute(query)})
    return counts


def rejected_counts(connection: Connection, run_id: int) -> dict[str, int]:
    query = (
        select(reports.c.code, func.count())
        .where(reports.c.run_id == run_id, reports.c.verdict == Verdict.REJECTED)
        .group_by(reports.c.code)
    )
    return {code: int(count) for code, count in connection.execute(query)}


@dataclass(frozen=True)
class Credit:
    """`accepted` updates with their `tokens`; `credited` tokens of all its reports, late ones included."""

    worker: str
    accepted: int = 0
    tokens: int = 0
    credited: int = 0


def credits_by_worker(connection: Connection, run_id: int) -> dict[str, Credit]:
    """Totals are sums over the ledger, never counters."""
    accepted = reports.c.verdict == Verdict.ACCEPTED
    query = (
        select(
            reports.c.worker,
            func.count().filter(accepted),
            func.coalesce(func.sum(reports.c.tokens).filter(accepted), 0),
            func.sum(reports.c.credited),
        )
        .where(reports.c.run_id == run_id)
        .group_by(reports.c.worker)
    )
    return {row[0]: Credit(row[0], *(int(n) for n in row[1:])) for row in connection.execute(query)}


def blobs_in_use(connection: Connection) -> set[str]:
    query = select(reports.c.blob_sha256).where(reports.c.blob_sha256.is_not(None))
    return {str(sha) for (sha,) in connection.execute(query)}


def forget_payloads(
    connection: Connection, run_id: int, *, merged_before: int, but: Collection[int] = ()
) -> set[str]:
    """Payloads merged or discarded before that version are not needed: the blobs that no row names now.

    Those of the reports `but` are, by seq.
    """
    old = (
        reports.c.run_id == run_id,
        reports.c.seq.not_in(but),
        or_(reports.c.merged_in < merged_before, reports.c.discarded_in < merged_before),
        reports.c.blob_sha256.is_not(None),
    )
    found = {str(sha) for (sha,) in connection.execute(select(reports.c.blob_sha256).where(*old))}
    connection.execute(update(reports).where(*old).values(blob_sha256=None))
    return found
