"""Kick stuck tasks: the lease is revoked, the task waits whole, its worker hears it at its next heartbeat.

Nobody is punished: it is no failed try. A report that still comes in counts if it is the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, work
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.queries.stuck import Stuck, stuck_in
from bithaul.errors import Conflict, NotFound
from bithaul.rounds.leases import Ending


@dataclass(frozen=True)
class KickedTask:
    task: int
    worker: str
    why: str


@dataclass(frozen=True)
class Kicked:
    tasks: list[KickedTask]


def kick_task(c: Coordinator, task: int, *, actor: str = "cli") -> Kicked:
    """Raises `NotFound`, and `Conflict` when nobody holds the task or its worker gets on with it."""
    now = c.clock.now()
    with c.database.write() as connection:
        run = runs.get_run(connection)
        if not work.has_task(connection, task):
            raise NotFound(f"There is no task {task}.", code="unknown_task")
        if work.open_lease_of_task(connection, task) is None:
            raise Conflict(f"Nobody holds task {task}; there is nothing to kick.", code="task_not_held")
        found = [s for s in stuck_in(c, connection, run, now=now) if s.lease.task_id == task]
        if not found:
            raise Conflict(f"Task {task} gets on; take it back if it must be.", code="task_not_stuck")
        kicked = _kick(connection, found, now=now, actor=actor)
    c.events.merge.set()
    return kicked


def kick_stuck(c: Coordinator, *, actor: str = "cli") -> Kicked:
    """All that are stuck. Raises `Conflict` when none is."""
    now = c.clock.now()
    with c.database.write() as connection:
        run = runs.get_run(connection)
        found = stuck_in(c, connection, run, now=now)
        if not found:
            raise Conflict("No task is stuck now; nothing was done.", code="nothing_stuck")
        kicked = _kick(connection, found, now=now, actor=actor)
    c.events.merge.set()
    return kicked


def _kick(connection: Connection, found: Sequence[Stuck], *, now: float, actor: str) -> Kicked:
    for stuck in found:
        reason = f"kicked by an operator: {stuck.why[0].lower()}{stuck.why[1:].rstrip('.')}"
        work.end_lease(connection, stuck.lease, Ending.REVOKED, now=now, reason=reason)
    names = ", ".join(f"{s.lease.task_id} of {s.lease.worker}" for s in found)
    if len(found) == 1:
        subject = str(found[0].lease.task_id)
        detail = f"Task {names} was kicked and waits for the next worker."
    else:
        subject = f"{len(found)} tasks"
        detail = f"{len(found)} stuck tasks were kicked and wait for the next workers: {names}."
    record(connection, now, actor=actor, action="task.kick", subject=subject, detail=detail)
    return Kicked([KickedTask(s.lease.task_id, s.lease.worker, s.why) for s in found])
