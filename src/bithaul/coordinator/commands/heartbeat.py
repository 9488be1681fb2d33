"""POST /heartbeat: progress renews the lease, an outcome ends it, and the answer carries drain and pause.

A heartbeat revives a worker marked gone. Only progress renews, being alive does not: a worker that hangs
loses its lease.
"""

from __future__ import annotations

from sqlalchemy import Connection

from bithaul.coordinator.commands import standing
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.work import LeaseRow
from bithaul.exchange.messages import HeartbeatRequest, HeartbeatResponse, LeaseOutcome, RunState
from bithaul.rounds.leases import Ending, LeaseState, renewed_deadline
from bithaul.rounds.sizing import LAST_FACTOR, RENEWAL_FACTOR

TELEMETRY_SECONDS = 1.0  # of a worker one point in each is kept, however often it tells


def heartbeat(
    c: Coordinator, worker: str, beat: HeartbeatRequest, *, instance: str | None = None
) -> HeartbeatResponse:
    """Raises `Gone` for a worker that is not registered, or that another `instance` is now."""
    now = c.clock.now()
    woken = False
    with c.database.write(durable=False) as connection:
        run = runs.get_run(connection)
        row = fleet.get_worker(connection, worker, instance=instance)
        fleet.update_worker(connection, worker, last_seen=now, gone=False, activity=beat.activity)
        lease = None
        if beat.task is not None and beat.fence is not None:
            lease = work.find_lease(connection, worker, task=beat.task, fence=beat.fence)
        is_open = lease is not None and lease.state is LeaseState.OPEN
        if lease is not None and is_open:
            if beat.outcome is not None:
                _end(connection, row, lease, beat, now=now)
                is_open, woken = False, True
            else:
                _renew(connection, run, lease, beat, now=now)
        told = beat.tokens or beat.loss is not None
        if told and now // TELEMETRY_SECONDS > row.last_seen // TELEMETRY_SECONDS:
            fleet.insert_telemetry(
                connection,
                time=now,
                worker=worker,
                task=beat.task,
                tokens=beat.tokens,
                tokens_per_second=beat.tokens_per_second,
                loss=beat.loss,
            )
    if woken:
        c.events.merge.set()
    return HeartbeatResponse(
        drain=row.drained, paused=run.state is RunState.PAUSED, lease_open=is_open, state=run.state
    )


def _end(
    connection: Connection, worker: WorkerRow, lease: LeaseRow, beat: HeartbeatRequest, *, now: float
) -> None:
    failed = beat.outcome is LeaseOutcome.FAILED
    ending = Ending.FAILED if failed else Ending.RELEASED
    work.end_lease(connection, lease, ending, now=now, reason=beat.code or str(ending))
    if failed:
        standing.failed(connection, worker, struck="", now=now)


def _renew(
    connection: Connection, run: RunRow, lease: LeaseRow, beat: HeartbeatRequest, *, now: float
) -> None:
    moved = beat.tokens > lease.tokens or beat.activity == "uploading"
    if not moved:
        return
    first = (lease.last_deadline - lease.granted_at) / LAST_FACTOR
    deadline = renewed_deadline(
        deadline=lease.deadline,
        last_deadline=lease.last_deadline,
        now=now,
        seconds=max(RENEWAL_FACTOR * run.task_seconds, 0.5 * first),
    )
    work.update_lease(
        connection,
        lease,
        tokens=max(beat.tokens, lease.tokens),
        moved_at=now if beat.tokens > lease.tokens else lease.moved_at,
        deadline=deadline,
    )
