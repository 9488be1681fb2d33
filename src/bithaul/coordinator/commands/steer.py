"""What an operator can do to a run or a worker: drain, pause, resume, set the budget.

Each is one transaction and idempotent.
"""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs
from bithaul.coordinator.database.runs import RunRow
from bithaul.errors import Conflict, InvalidInput, NotFound
from bithaul.exchange.messages import RunState


def drain_worker(c: Coordinator, worker: str, *, on: bool) -> None:
    """With `on`: the worker finishes its step, reports, and gets no more work. Raises `NotFound`."""
    with c.database.write() as connection:
        if fleet.find_worker(connection, worker) is None:
            raise NotFound(f"There is no worker {worker!r}.")
        fleet.update_worker(connection, worker, drained=on)
    c.events.merge.set()


def pause_run(c: Coordinator) -> RunRow:
    """No new leases; open ones go on. Raises `Conflict` when the run is finished."""
    with c.database.write() as connection:
        run = runs.get_run(connection)
        if run.state is RunState.FINISHED:
            raise Conflict("The run is finished; extend its budget to go on.")
        runs.update_run(connection, run.id, state=RunState.PAUSED, paused_because="")
        changed = runs.get_run(connection)
    c.events.merge.set()
    return changed


def resume_run(c: Coordinator) -> RunRow:
    """Undo `pause_run`; harmless when the run is not paused."""
    with c.database.write() as connection:
        run = runs.get_run(connection)
        if run.state is RunState.PAUSED:
            runs.update_run(connection, run.id, state=RunState.RUNNING, paused_because="")
        changed = runs.get_run(connection)
    c.events.merge.set()
    return changed


def set_budget(c: Coordinator, *, tokens: float | None = None, seconds: float | None = None) -> RunRow:
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
        changed = runs.get_run(connection)
    c.events.merge.set()
    return changed
