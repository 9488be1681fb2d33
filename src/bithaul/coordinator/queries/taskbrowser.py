"""The queue and its history: what waits, who has what, what became of each task and why."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import browse, fleet, history, runs, work
from bithaul.coordinator.database.browse import TaskLine
from bithaul.coordinator.queries.stuck import stuck_in
from bithaul.coordinator.queries.workerpage import ReportView
from bithaul.errors import InvalidInput, NotFound
from bithaul.rounds.leases import TaskState

PAGE = 100
STUCK = "stuck"  # a filter like a state: leased, but getting nowhere


class TaskView(BaseModel):
    """One task with who had it last."""

    model_config = ConfigDict(frozen=True)

    id: int
    state: str
    examples: int
    attempts: int
    reason: str
    created_at: float
    changed_at: float
    worker: str | None
    base_version: int | None
    seconds: float | None  # of the newest lease, up to now while it is open
    share: float | None  # progress of an open lease, 0..1
    deadline: float | None  # of an open lease
    late: bool  # an open lease past its deadline
    stuck: str  # why an open lease counts as stuck; empty when it does not


class TasksView(BaseModel):
    model_config = ConfigDict(frozen=True)

    now: float
    counts: Mapping[str, int]
    stuck: int  # of the leased ones
    rows: list[TaskView]  # newest first
    older: int | None
    workers: list[str]


class AttemptView(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: int
    worker: str
    state: str
    base_version: int
    granted_at: float
    ended_at: float | None
    deadline: float
    tokens: int
    expected_tokens: float
    reason: str
    repetition: bool  # for the audit: the task was merged already


class TaskPageView(BaseModel):
    model_config = ConfigDict(frozen=True)

    now: float
    task: TaskView
    attempts: list[AttemptView]
    reports: list[ReportView]


def task_browser(
    c: Coordinator, *, state: str = "", worker: str = "", before: int | None = None, count: int = PAGE
) -> TasksView:
    """Works without a run too. Raises `InvalidInput` for an unknown state."""
    if state not in {"", STUCK, *TaskState}:
        known = ", ".join([*TaskState, STUCK])
        raise InvalidInput(f"Unknown state; known: {known}.", code="unknown_state")
    now = c.clock.now()
    with c.database.read() as connection:
        names = [w.id for w in fleet.list_workers(connection)]
        run = runs.find_run(connection)
        if run is None:
            return TasksView(now=now, counts={}, stuck=0, rows=[], older=None, workers=names)
        stuck = {s.lease.task_id: s.why for s in stuck_in(c, connection, run, now=now)}
        rows = browse.task_lines(
            connection,
            run.id,
            count=count + 1,
            state="" if state == STUCK else state,
            worker=worker,
            before=before,
            tasks_in=sorted(stuck) if state == STUCK else None,
        )
        counts = work.task_counts(connection, run.id)
    shown = rows[:count]
    return TasksView(
        now=now,
        counts=counts,
        stuck=len(stuck),
        rows=[_view(row, now, stuck.get(row.id, "")) for row in shown],
        older=shown[-1].id if len(rows) > count else None,
        workers=names,
    )


def task_page(c: Coordinator, task: int) -> TaskPageView:
    """Raises `NotFound`."""
    now = c.clock.now()
    with c.database.read() as connection:
        run = runs.get_run(connection)
        rows = browse.task_lines(connection, run.id, count=1, tasks_in=[task])
        if not rows:
            raise NotFound(f"There is no task {task}.", code="unknown_task")
        stuck = {s.lease.task_id: s.why for s in stuck_in(c, connection, run, now=now)}
        attempts = browse.attempts_of(connection, task)
        reports = history.reports_of(connection, run.id, count=20, task=task)
    return TaskPageView(
        now=now,
        task=_view(rows[0], now, stuck.get(task, "")),
        attempts=[AttemptView(**row) for row in attempts],
        reports=[ReportView(**row) for row in reports],
    )


def _view(row: TaskLine, now: float, stuck: str) -> TaskView:
    is_open = row.state == TaskState.LEASED and row.granted_at is not None
    expected = row.expected_tokens or 0.0
    ended = now if is_open else row.ended_at
    return TaskView(
        id=row.id,
        state=row.state,
        examples=row.examples,
        attempts=row.attempts,
        reason=row.reason,
        created_at=row.created_at,
        changed_at=row.changed_at,
        worker=row.worker,
        base_version=row.base_version,
        seconds=None if row.granted_at is None or ended is None else ended - row.granted_at,
        share=min(1.0, (row.tokens or 0) / expected) if is_open and expected else None,
        deadline=row.deadline if is_open else None,
        late=bool(is_open and row.deadline is not None and row.deadline < now),
        stuck=stuck,
    )
