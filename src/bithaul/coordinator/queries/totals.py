"""The strip of totals that every page shows: what is queued, how fast it goes, how long it will take."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs, versions, work
from bithaul.coordinator.queries.progress import RECENT_VERSIONS, eta_seconds, recent_speed, stands_still
from bithaul.exchange.messages import RunState


class TotalsView(BaseModel):
    """Task counts; tokens per second of the whole fleet; ETA in seconds, None when it cannot be told."""

    model_config = ConfigDict(frozen=True)

    now: float
    run: str | None = None  # None: no run yet, and the rest is zero
    state: str = "none"
    progress: float = 0.0  # 0..1, share of the budget
    pending: int = 0
    leased: int = 0
    done: int = 0
    failed: int = 0
    tokens: int = 0  # in merged updates
    tokens_per_second: float = 0.0
    eta_seconds: float | None = None
    still: bool = False  # nobody is there who gets on, so the time left does not get less
    version: int = 0
    active: int = 0  # workers that are not gone and not drained
    fleet: int = 0


def totals(c: Coordinator) -> TotalsView:
    """Works without a run too."""
    with c.database.read() as connection:
        return totals_in(c, connection)


def totals_in(c: Coordinator, connection: Connection) -> TotalsView:
    now = c.clock.now()
    active, everybody = fleet.count_workers(connection)
    run = runs.find_run(connection)
    if run is None:
        return TotalsView(now=now, active=active, fleet=everybody)
    tasks = work.task_counts(connection, run.id)
    recent = versions.newest_versions(connection, run.id, count=RECENT_VERSIONS)
    tokens = recent[-1].tokens_total  # what the ledger adds up to, without adding it up every five seconds
    still = stands_still(c, connection, run, now=now)
    return TotalsView(
        now=now,
        run=run.name,
        state=run.state,
        progress=run.progress_at(now, tokens=tokens),
        pending=tasks["pending"],
        leased=tasks["leased"],
        done=tasks["accepted"] + tasks["merged"],
        failed=tasks["failed"],
        tokens=tokens,
        tokens_per_second=0.0 if run.state is RunState.FINISHED else recent_speed(recent, now=now),
        eta_seconds=None if still else eta_seconds(run, tokens=tokens, seconds=run.seconds_at(now)),
        still=still,
        version=recent[-1].version,
        active=active,
        fleet=everybody,
    )
