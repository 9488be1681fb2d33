"""What happens to a worker's trust and rest: by its reports, and by the operator.

The rules are `rounds.trust`; here their results are written, in the transaction of what caused them.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.repetitions import Outcome
from bithaul.coordinator.identity.audit import record
from bithaul.errors import NotFound
from bithaul.rounds import trust
from bithaul.rounds.gates import audit_strike
from bithaul.rounds.leases import Ending, rest_seconds


def delivered(connection: Connection, worker: WorkerRow, *, struck: str, now: float) -> None:
    """After an accepted report; `struck` says what a gate found in it all the same."""
    after = trust.strike(worker.trust, struck, now=now) if struck else trust.accepted(worker.trust, now=now)
    streak = 0 if struck else worker.streak + 1
    until = after.until if after.standing is trust.Standing.RESTING else 0.0
    fleet.update_worker(
        connection,
        worker.id,
        failures=0,
        streak=streak,
        last_seen=now,
        gone=False,
        **{**fleet.trust_values(after), "rest_until": until},
    )


def failed(connection: Connection, worker: WorkerRow, *, struck: str, now: float) -> None:
    """After a task that failed or a report that was refused: several in a row are a rest."""
    failures = worker.failures + 1
    after = worker.trust.at(now)
    if struck:
        after = trust.strike(after, struck, now=now)
    seconds = rest_seconds(failures)
    if seconds > 0:
        until = max(after.until, now + seconds)
        after = trust.rest(after, f"{failures} failed tasks in a row", until=until)
    fleet.update_worker(
        connection,
        worker.id,
        failures=failures,
        streak=0 if struck else worker.streak,
        last_seen=now,
        gone=False,
        **fleet.trust_values(after),
    )


def differed(
    connection: Connection, worker: WorkerRow, outcomes: Sequence[Outcome], *, task: int, now: float
) -> None:
    """A repetition of its task by another worker came out differently; `outcomes` has it last.

    One of the two is wrong, and one comparison does not say which: both are looked at more closely, so who
    is right is soon known by the word of others. Two in a row are a strike.
    """
    by, like = outcomes[-1].by, outcomes[-1].likeness
    for name in (worker.id, by):
        fleet.update_worker(connection, name, streak=0)
    detail = f"Task {task}, repeated by {by}, came out differently (likeness {like:.2f})."
    record(connection, now, actor="system", action="worker.differed", subject=worker.id, detail=detail)
    if not audit_strike([one.likeness for one in outcomes]):
        return
    told = " and ".join(f"{one.by} (likeness {one.likeness:.2f})" for one in outcomes)
    reason = f"repetitions of its tasks came out differently, twice in a row: by {told}"
    after = trust.strike(worker.trust, reason, now=now)
    if after != worker.trust:
        fleet.update_worker(connection, worker.id, **fleet.trust_values(after))
        record(connection, now, actor="system", action="worker.strike", subject=worker.id, detail=reason)


def set_aside_worker(c: Coordinator, worker: str, *, reason: str = "", actor: str = "cli") -> WorkerRow:
    """No more leases, and what it still reports is credited but not merged. Raises `NotFound`."""
    now = c.clock.now()
    with c.database.write() as connection:
        row = _found(connection, worker)
        after = trust.set_aside(row.trust, reason or "by the operator")
        run = runs.find_run(connection)
        held = work.open_leases(connection, run.id, worker=worker) if run else []
        if after == row.trust and not held:
            return row
        fleet.update_worker(connection, worker, **fleet.trust_values(after))
        for lease in held:
            work.end_lease(connection, lease, Ending.RELEASED, now=now, reason="its worker was set aside")
        record(connection, now, actor=actor, action="worker.set-aside", subject=worker, detail=reason)
        changed = fleet.get_worker(connection, worker)
    c.events.merge.set()
    return changed


def restore_worker(c: Coordinator, worker: str, *, actor: str = "cli") -> WorkerRow:
    """Back to probation from whatever state, a pin included; may work at once. Raises `NotFound`."""
    with c.database.write() as connection:
        after = trust.restore(_found(connection, worker).trust, "restored by the operator")
        fleet.update_worker(connection, worker, failures=0, **fleet.trust_values(after))
        record(connection, c.clock.now(), actor=actor, action="worker.restore", subject=worker)
        changed = fleet.get_worker(connection, worker)
    c.events.merge.set()
    return changed


def pin_worker(c: Coordinator, worker: str, *, expected: bool = False, actor: str = "cli") -> WorkerRow:
    """Full weight whatever the gates say: for machines of one's own.

    `expected`: it may be pinned before it was ever heard. Raises `NotFound` otherwise.
    """
    now = c.clock.now()
    with c.database.write() as connection:
        row = fleet.find_worker(connection, worker)
        if row is None and expected:
            row = fleet.insert_worker(connection, worker, now=now, gone=True)
        row = row or _found(connection, worker)
        if row.trust == trust.pin():
            return row
        fleet.update_worker(connection, worker, **fleet.trust_values(trust.pin()))
        record(connection, now, actor=actor, action="worker.pin", subject=worker)
        return fleet.get_worker(connection, worker)


def _found(connection: Connection, worker: str) -> WorkerRow:
    row = fleet.find_worker(connection, worker)
    if row is None:
        raise NotFound(f"There is no worker {worker!r}.")
    return row
