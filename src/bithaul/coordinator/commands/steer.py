"""What an operator can do: drain a worker or call it gone, pause the run, take a task back, pin a version.

Each is one transaction that leaves an audit row. Doing it twice does no harm, and leaves one row only.
"""

from __future__ import annotations

from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs, versions, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.identity.audit import record
from bithaul.errors import Conflict, InvalidInput, NotFound
from bithaul.exchange.messages import RunState
from bithaul.rounds.leases import Ending


def drain_worker(c: Coordinator, worker: str, *, on: bool, actor: str = "cli") -> None:
    """With `on`: the worker finishes its step, reports, and gets no more work. Raises `NotFound`."""
    with c.database.write() as connection:
        if _require_worker(connection, worker).drained == on:
            return
        fleet.update_worker(connection, worker, drained=on)
        action = "worker.drain" if on else "worker.resume"
        record(connection, c.clock.now(), actor=actor, action=action, subject=worker)
    c.events.merge.set()


def call_gone(c: Coordinator, worker: str, *, actor: str = "cli") -> None:
    """As if the worker had been silent: its leases end and go to others. Its next word revives it.

    Raises `NotFound`.
    """
    now = c.clock.now()
    with c.database.write() as connection:
        row = _require_worker(connection, worker)
        run = runs.find_run(connection)
        held = [] if run is None else work.open_leases(connection, run.id, worker=worker)
        if row.gone and not held:
            return
        for lease in held:
            work.end_lease(connection, lease, Ending.EXPIRED, now=now, reason="called gone by an operator")
        fleet.update_worker(connection, worker, gone=True, activity="idle")
        record(connection, now, actor=actor, action="worker.gone", subject=worker)
    c.events.merge.set()


def requeue_task(c: Coordinator, task: int, *, actor: str = "cli") -> None:
    """End the open lease of a task; it waits for the next worker, whole. Raises `NotFound` or `Conflict`."""
    now = c.clock.now()
    with c.database.write() as connection:
        if not work.has_task(connection, task):
            raise NotFound(f"There is no task {task}.", code="unknown_task")
        lease = work.open_lease_of_task(connection, task)
        if lease is None:
            raise Conflict(f"Nobody holds task {task}; there is nothing to take back.", code="task_not_held")
        work.end_lease(connection, lease, Ending.RELEASED, now=now, reason="taken back by an operator")
        record(connection, now, actor=actor, action="task.requeue", subject=str(task), detail=lease.worker)
    c.events.merge.set()


def pin_version(c: Coordinator, version: int, *, on: bool, actor: str = "cli") -> None:
    """With `on` the weights of this version are kept for good.

    Raises `NotFound`, and `Conflict` when the weights are gone already.
    """
    with c.database.write() as connection:
        run = runs.get_run(connection)
        row = versions.find_version(connection, run.id, version)
        if row is None:
            raise NotFound(f"There is no weight version {version}.", code="unknown_version")
        if on and row.retired_at is not None:
            raise Conflict(f"The weights of version {version} are gone already.", code="version_retired")
        if row.pinned == on:
            return
        versions.update_version(connection, run.id, version, pinned=on)
        action = "version.pin" if on else "version.unpin"
        record(connection, c.clock.now(), actor=actor, action=action, subject=str(version))


def pause_run(c: Coordinator, *, actor: str = "cli") -> RunRow:
    """No new leases; open ones go on. Raises `Conflict` when the run is finished."""
    with c.database.write() as connection:
        run = runs.get_run(connection)
        if run.state is RunState.FINISHED:
            raise Conflict("The run is finished; extend its budget to go on.")
        if run.state is RunState.PAUSED and not run.paused_because:
            return run
        runs.update_run(connection, run.id, state=RunState.PAUSED, paused_because="")
        record(connection, c.clock.now(), actor=actor, action="run.pause", subject=run.name)
        changed = runs.get_run(connection)
    c.events.merge.set()
    return changed


def resume_run(c: Coordinator, *, actor: str = "cli") -> RunRow:
    """Undo `pause_run`; harmless when the run is not paused."""
    with c.database.write() as connection:
        run = runs.get_run(connection)
        if run.state is not RunState.PAUSED:
            return run
        runs.update_run(connection, run.id, state=RunState.RUNNING, paused_because="")
        record(connection, c.clock.now(), actor=actor, action="run.resume", subject=run.name)
        changed = runs.get_run(connection)
    c.events.merge.set()
    return changed


def set_budget(
    c: Coordinator, *, tokens: float | None = None, seconds: float | None = None, actor: str = "cli"
) -> RunRow:
    """Replace the budget; a finished run with budget left runs again. Raises `InvalidInput` without any."""
    given = [b for b in (tokens, seconds) if b is not None]
    if not given or not all(0 < b < float("inf") for b in given):
        raise InvalidInput("A run needs a positive budget of tokens or of seconds.")
    now = c.clock.now()
    with c.database.write() as connection:
        run = runs.get_run(connection)
        runs.update_run(connection, run.id, budget_tokens=tokens, budget_seconds=seconds)
        if run.state is RunState.FINISHED:
            runs.update_run(connection, run.id, state=RunState.RUNNING)
            changed = runs.get_run(connection)
            done = runs.spent(connection, run.id).merged
            if changed.progress_at(now, tokens=done) >= 1.0:
                runs.update_run(connection, run.id, state=RunState.FINISHED)
        detail = " ".join(
            f"{name}={value:g}"
            for name, value in (("tokens", tokens), ("seconds", seconds))
            if value is not None
        )
        record(connection, now, actor=actor, action="run.budget", subject=run.name, detail=detail)
        changed = runs.get_run(connection)
    c.events.merge.set()
    return changed


def _require_worker(connection: Connection, worker: str) -> WorkerRow:
    row = fleet.find_worker(connection, worker)
    if row is None:
        raise NotFound(f"There is no worker {worker!r}.")
    return row
