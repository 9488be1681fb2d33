"""How training goes, for `bithaul up`, the dashboard and scripts (GET /api/progress)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, ledger, runs, versions, work
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.queries.health import problems
from bithaul.coordinator.queries.stuck import moved_at
from bithaul.exchange.messages import RunState
from bithaul.rounds.stuck import patience

RECENT_VERSIONS = 6


class SeriesPoint(BaseModel):
    """One version. `tokens` counts all training up to it; losses are nats per counted token."""

    model_config = ConfigDict(frozen=True)

    version: int
    tokens: int
    time: float
    train_loss: float | None
    heldout_loss: float | None
    contributors: int


class WorkerProgress(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    state: str  # active, drained, gone
    activity: str
    tokens_per_second: float  # measured over finished tasks
    accepted: int  # accepted updates
    tokens: int  # in accepted updates
    share: float  # of all accepted updates
    credited: int  # tokens of all its reports, late ones included
    last_seen: float
    standing: str  # probation, steady, resting, set aside
    weight: float  # of its updates, 0..1
    why: str  # of its standing
    way_out: str  # what leads to full weight
    scored: int  # updates of it that have a loss score
    score: float | None  # their average, -1 to 1; None before the first


class ProgressView(BaseModel):
    model_config = ConfigDict(frozen=True)

    run: str
    state: RunState
    progress: float  # 0..1, share of the budget
    budget_tokens: float | None
    budget_seconds: float | None
    tokens: int  # in merged updates
    seconds: float  # active time
    version: int  # newest
    versions: int  # made so far, the first included
    tokens_per_second: float  # whole fleet, recent
    eta_seconds: float | None  # None when it cannot be told, as while nobody gets on
    tasks: Mapping[str, int]
    open_leases: int
    receipts: Mapping[str, int]  # by verdict
    rejected: Mapping[str, int]  # by code
    workers: list[WorkerProgress]
    series: list[SeriesPoint]
    problems: list[str] = []  # what keeps the run from going on; empty when all is well


def progress(c: Coordinator) -> ProgressView:
    """Raises `NotFound` when no run was created."""
    now = c.clock.now()
    troubles = problems(c)
    with c.database.read() as connection:
        run = runs.get_run(connection)
        rows = versions.list_versions(connection, run.id)
        tokens = runs.spent(connection, run.id).merged
        share = run.progress_at(now, tokens=tokens)
        seconds = run.seconds_at(now)
        still = stands_still(c, connection, run, now=now)
        return ProgressView(
            run=run.name,
            state=run.state,
            progress=share,
            budget_tokens=run.budget_tokens,
            budget_seconds=run.budget_seconds,
            tokens=tokens,
            seconds=seconds,
            version=rows[-1].version,
            versions=len(rows),
            tokens_per_second=recent_speed(
                rows, now=rows[-1].created_at if run.state is RunState.FINISHED else now
            ),
            eta_seconds=None if still else eta_seconds(run, tokens=tokens, seconds=seconds),
            tasks=work.task_counts(connection, run.id),
            open_leases=len(work.open_leases(connection, run.id)),
            receipts=ledger.verdict_counts(connection, run.id),
            rejected=ledger.rejected_counts(connection, run.id),
            workers=_workers(connection, run, now=now),
            series=[_point(row) for row in rows],
            problems=troubles,
        )


def _point(row: VersionRow) -> SeriesPoint:
    return SeriesPoint(
        version=row.version,
        tokens=row.tokens_total,
        time=row.created_at,
        train_loss=row.train_loss,
        heldout_loss=row.heldout_loss,
        contributors=row.contributors,
    )


def recent_speed(rows: Sequence[VersionRow], *, now: float) -> float:
    """Tokens per second over the last versions, merging and waiting included.

    The wait for the next one counts as well once it is longer than each of them took, so that a fleet which
    has stopped is not told to be as fast as ever.
    """
    recent = rows[-RECENT_VERSIONS:]
    steps = [after.created_at - before.created_at for before, after in pairwise(recent)]
    late = max(0.0, now - recent[-1].created_at - max(steps, default=0.0))
    passed = sum(steps) + late
    return (recent[-1].tokens_total - recent[0].tokens_total) / passed if passed > 0 else 0.0


def stands_still(c: Coordinator, connection: Connection, run: RunRow, *, now: float) -> bool:
    """Whether nobody is there who gets on with a running run, or who waits for a task of it."""
    if run.state is not RunState.RUNNING:
        return False
    since = now - patience(c.settings.heartbeat_seconds)
    active, _ = fleet.count_workers(connection)
    holders, getting_on = work.holders(connection, run.id, since=since)
    if getting_on or active > holders:  # asked first, since every page asks: many rows are not read for it
        return False
    held = work.open_leases(connection, run.id)
    if any(moved >= since for moved in moved_at(c, held).values()):  # an upload
        return False
    stalled = {lease.worker for lease in held}
    return all(row.id in stalled for row in fleet.list_workers(connection) if row.state == "active")


def eta_seconds(run: RunRow, *, tokens: int, seconds: float) -> float | None:
    """Seconds until the first of the budgets is used up at the mean speed so far."""
    if run.state is RunState.FINISHED:
        return 0.0
    left = []
    if run.budget_seconds is not None:
        left.append(run.budget_seconds - seconds)
    if run.budget_tokens is not None and tokens and seconds:
        left.append((run.budget_tokens - tokens) * seconds / tokens)
    return max(0.0, min(left)) if left else None


def _workers(connection: Connection, run: RunRow, *, now: float) -> list[WorkerProgress]:
    earned = ledger.credits_by_worker(connection, run.id)
    total = sum(credit.accepted for credit in earned.values())
    out = []
    for row in fleet.list_workers(connection):
        credit = earned.get(row.id, ledger.Credit(row.id))
        trust = row.trust.at(now)
        out.append(
            WorkerProgress(
                name=row.id,
                state=row.state,
                activity=row.activity,
                tokens_per_second=row.speed,
                accepted=credit.accepted,
                tokens=credit.tokens,
                share=credit.accepted / total if total else 0.0,
                credited=credit.credited,
                last_seen=row.last_seen,
                standing=trust.standing,
                weight=trust.weight(now),
                why=trust.why,
                way_out=trust.way_out,
                scored=trust.fit.count,
                score=trust.fit.average if trust.fit.count else None,
            )
        )
    return out
