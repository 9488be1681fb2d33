"""Rows of positions, tasks and leases. Every state change goes through the table of allowed moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from bithaul.coordinator.database.runs import RunRow, update_run
from bithaul.coordinator.database.tables import leases, returned, tasks
from bithaul.rounds.leases import (
    ENDS,
    Ending,
    LeaseState,
    TaskState,
    check_lease_move,
    check_task_move,
    task_after,
)
from bithaul.rounds.positions import Free, Span


@dataclass(frozen=True)
class TaskRow:
    id: int
    run_id: int
    state: TaskState
    positions: tuple[Span, ...]
    examples: int
    attempts: int
    failed_by: tuple[str, ...]
    reason: str
    parent: int | None  # the discarded task whose slice this one has
    created_at: float
    changed_at: float


@dataclass(frozen=True)
class LeaseRow:
    id: int
    run_id: int
    task_id: int
    worker: str
    fence: str
    state: LeaseState
    base_version: int
    granted_at: float
    deadline: float
    last_deadline: float
    ended_at: float | None
    reason: str
    tokens: int
    expected_tokens: float
    aimed_at: float
    soft_stop_seconds: float
    progress_start: float
    progress_end: float
    seed: int
    probe: bool


# Built once: for a claim, building its statements anew costs more than running them.
_TASK_COLUMNS = [tasks.c[field.name] for field in fields(TaskRow)]
_LEASE_COLUMNS = [leases.c[field.name] for field in fields(LeaseRow)]
_LEASE_STATE = [field.name for field in fields(LeaseRow)].index("state")
_FREE = (
    select(returned.c.start, returned.c.count)
    .where(returned.c.run_id == bindparam("run"))
    .order_by(returned.c.start)
)
_TASK = select(*_TASK_COLUMNS).where(tasks.c.id == bindparam("task"))
_TASKS_IN = (
    select(*_TASK_COLUMNS)
    .where(tasks.c.run_id == bindparam("run"), tasks.c.state.in_(bindparam("states", expanding=True)))
    .order_by(tasks.c.id)
)
_LEASE = select(*_LEASE_COLUMNS).where(
    leases.c.fence == bindparam("fence"),
    leases.c.task_id == bindparam("task"),
    leases.c.worker == bindparam("worker"),
)
_OPEN_LEASES = (
    select(*_LEASE_COLUMNS)
    .where(leases.c.run_id == bindparam("run"), leases.c.state == LeaseState.OPEN)
    .order_by(leases.c.id)
)
_OPEN_LEASES_OF_WORKER = _OPEN_LEASES.where(leases.c.worker == bindparam("worker"))
_OPEN_LEASE_OF_TASK = select(*_LEASE_COLUMNS).where(
    leases.c.task_id == bindparam("task"), leases.c.state == LeaseState.OPEN
)
_FIRST_LEASE = (
    select(*_LEASE_COLUMNS)
    .where(leases.c.run_id == bindparam("run"), leases.c.base_version == bindparam("version"))
    .order_by(leases.c.id)
    .limit(1)
)


def read_free(connection: Connection, run: RunRow) -> Free:
    rows = connection.execute(_FREE, {"run": run.id})
    return Free(run.position_cursor, tuple(Span(start, count) for start, count in rows))


def write_free(connection: Connection, run: RunRow, free: Free) -> None:
    old = set(read_free(connection, run).returned)
    new = set(free.returned)
    for span in old - new:
        connection.execute(
            delete(returned).where(returned.c.run_id == run.id, returned.c.start == span.start)
        )
    for span in sorted(new - old):
        connection.execute(insert(returned).values(run_id=run.id, start=span.start, count=span.count))
    if free.cursor != run.position_cursor:
        update_run(connection, run.id, position_cursor=free.cursor)


def insert_task(
    connection: Connection,
    run_id: int,
    positions: Sequence[Span],
    *,
    now: float,
    parent: int | None = None,
) -> TaskRow:
    """A new pending task."""
    examples = sum(s.count for s in positions)
    values: dict[str, Any] = {
        "run_id": run_id,
        "state": TaskState.PENDING,
        "positions": [[s.start, s.count] for s in positions],
        "examples": examples,
        "attempts": 0,
        "failed_by": [],
        "reason": "",
        "parent": parent,
        "created_at": now,
        "changed_at": now,
    }
    number = connection.execute(insert(tasks).values(**values).returning(tasks.c.id)).scalar_one()
    return get_task(connection, int(number))


def get_task(connection: Connection, task: int) -> TaskRow:
    return _task(dict(connection.execute(_TASK, {"task": task}).mappings().one()))


def has_task(connection: Connection, task: int) -> bool:
    return connection.execute(_TASK, {"task": task}).first() is not None


def list_tasks(connection: Connection, run_id: int, *states: TaskState) -> list[TaskRow]:
    found = connection.execute(_TASKS_IN, {"run": run_id, "states": list(states or TaskState)})
    return [_task(dict(row)) for row in found.mappings()]


def _task(values: dict[str, Any]) -> TaskRow:
    values["state"] = TaskState(values["state"])
    values["positions"] = tuple(Span(start, count) for start, count in values["positions"])
    values["failed_by"] = tuple(values["failed_by"])
    return TaskRow(**values)


def move_task(
    connection: Connection, task: TaskRow, state: TaskState, *, now: float, **values: object
) -> None:
    check_task_move(task.state, state)
    connection.execute(
        update(tasks).where(tasks.c.id == task.id).values(state=state, changed_at=now, **values)
    )


def task_counts(connection: Connection, run_id: int) -> dict[str, int]:
    query = select(tasks.c.state, func.count()).where(tasks.c.run_id == run_id).group_by(tasks.c.state)
    counts = {str(state): 0 for state in TaskState}
    counts.update({state: int(count) for state, count in connection.execute(query)})
    return counts


def insert_lease(connection: Connection, values: dict[str, Any]) -> LeaseRow:
    """Grant: the task must be pending and becomes leased."""
    task = get_task(connection, values["task_id"])
    move_task(connection, task, TaskState.LEASED, now=values["granted_at"])
    row = {**values, "state": LeaseState.OPEN, "ended_at": None, "reason": "", "tokens": 0}
    connection.execute(insert(leases).values(**row))
    lease = find_lease(connection, values["worker"], task=values["task_id"], fence=values["fence"])
    assert lease is not None
    return lease


def find_lease(connection: Connection, worker: str, *, task: int, fence: str) -> LeaseRow | None:
    """The worker's own lease with this fence; another worker's is as unknown as none."""
    found = connection.execute(_LEASE, {"fence": fence, "task": task, "worker": worker})
    row = found.first()
    return None if row is None else _lease(row)


def open_leases(connection: Connection, run_id: int, *, worker: str | None = None) -> list[LeaseRow]:
    if worker is None:
        found = connection.execute(_OPEN_LEASES, {"run": run_id})
    else:
        found = connection.execute(_OPEN_LEASES_OF_WORKER, {"run": run_id, "worker": worker})
    return [_lease(row) for row in found]


def open_lease_of_task(connection: Connection, task: int) -> LeaseRow | None:
    row = connection.execute(_OPEN_LEASE_OF_TASK, {"task": task}).first()
    return None if row is None else _lease(row)


def first_lease(connection: Connection, run_id: int, version: int) -> LeaseRow | None:
    """The first lease granted on this version: it sets the round's beginning and planned end."""
    row = connection.execute(_FIRST_LEASE, {"run": run_id, "version": version}).first()
    return None if row is None else _lease(row)


def _lease(row: Row[Any]) -> LeaseRow:
    values = list(row)
    values[_LEASE_STATE] = LeaseState(values[_LEASE_STATE])
    return LeaseRow(*values)


def update_lease(connection: Connection, lease: LeaseRow, **values: object) -> None:
    connection.execute(update(leases).where(leases.c.id == lease.id).values(**values))


def move_lease(
    connection: Connection, lease: LeaseRow, state: LeaseState, *, now: float, reason: str = ""
) -> None:
    check_lease_move(lease.state, state)
    update_lease(connection, lease, state=state, ended_at=now, reason=reason[:200])


def end_lease(
    connection: Connection, lease: LeaseRow, ending: Ending, *, now: float, reason: str = ""
) -> TaskState:
    """End a lease without an accepted report; its task goes back whole, or fails at the attempt cap."""
    held = lease.state is LeaseState.OPEN
    move_lease(connection, lease, ENDS[ending], now=now, reason=reason or str(ending))
    task = get_task(connection, lease.task_id)
    if not held or task.state is not TaskState.LEASED:
        return task.state  # somebody else holds the task or it is settled: this ending says nothing about it
    after = task_after(ending, attempts=task.attempts, failed_by=task.failed_by, worker=lease.worker)
    move_task(
        connection,
        task,
        after.state,
        now=now,
        attempts=after.attempts,
        failed_by=list(after.failed_by),
        reason=(reason or str(ending))[:200],
    )
    return after.state
