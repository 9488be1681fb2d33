"""The sweeper: marks silent workers gone and gives back leases whose deadline has passed, never earlier."""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs, work
from bithaul.rounds.leases import Ending


def sweep(c: Coordinator) -> str:
    """Each lease and worker in its own transaction, so that a crash half-way leaves nothing half-done."""
    now = c.clock.now()
    expired = gone = 0
    with c.database.read() as connection:
        run = runs.find_run(connection)
        silent = [
            w.id
            for w in fleet.list_workers(connection)
            if not w.gone and now - w.last_seen > c.settings.worker_gone_seconds
        ]
        late = [] if run is None else [x for x in work.open_leases(connection, run.id) if x.deadline < now]
    for lease in late:
        with c.database.write() as connection:
            again = work.find_lease(connection, lease.worker, task=lease.task_id, fence=lease.fence)
            if again is not None and again.state == lease.state and again.deadline < now:
                work.end_lease(connection, again, Ending.EXPIRED, now=now)
                expired += 1
        c.crash_points.hit("sweep.half")
    for worker in silent:
        with c.database.write() as connection:
            row = fleet.find_worker(connection, worker)
            if row is not None and now - row.last_seen > c.settings.worker_gone_seconds:
                fleet.update_worker(connection, worker, gone=True, activity="idle")
                gone += 1
    if expired or gone:
        c.events.merge.set()
    return f"{expired} leases expired, {gone} workers gone"
