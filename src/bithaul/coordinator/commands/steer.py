"""What an operator can do to a run or a worker: drain, pause, resume, set the budget.

Each is one transaction and idempotent; states move by one table (`rounds.runs`).
"""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.runs import RunRow


def drain_worker(c: Coordinator, worker: str, *, on: bool) -> None:
    """With `on`: the worker finishes its step, reports, and gets no more work. Raises `NotFound`."""
    raise NotImplementedError


def pause_run(c: Coordinator) -> RunRow:
    """No new leases; open ones go on. Raises `Conflict` when the run is finished."""
    raise NotImplementedError


def resume_run(c: Coordinator) -> RunRow:
    """Undo `pause_run`."""
    raise NotImplementedError


def set_budget(c: Coordinator, *, tokens: float | None = None, seconds: float | None = None) -> RunRow:
    """Replace the budget; a finished run with budget left runs again. Raises `InvalidInput` without any."""
    raise NotImplementedError
