"""Rows of positions, tasks and leases. Every state change goes through the table of allowed moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from bithaul.coordinator.database.prepared import Prepared, Values, insert_row, parts, update_row
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
    seeding: int | None  # the operator's batch it was cut in
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
    moved_at: float | None
    expected_tokens: float
    aimed_at: float
    soft_stop_seconds: float
    progress_start: float
    progress_end: float
    seed: int
    probe: bool
    audit: bool  # with fresh moments and without a residual: another worker can repeat it
    repeat: bool  # it shall be repeated
    repeats: int | None  # the report whose task is run again; its tokens count nowhere


# Built once: for a claim, building its statements anew costs more than running them.
LOOKED_AT = 16  # waiting tasks read at a time
_TASK_FIELDS = [field.name for field in fields(TaskRow)]
TASK_COLUMNS = [tasks.c[name] for name in _TASK_FIELDS]
_LEASE_COLUMNS = [leases.c[field.name] for field in fields(LeaseRow)]
_LEASE_STATE = [field.name for field in fields(LeaseRow)].index("state")
_FREE = Prepared(
    select(returned.c.start, returned.c.count)
    .where(returned.c.run_id == bindparam("run"))
    .order_by(returned.c.start)
)
_TAKE = Prepared(
    delete(returned).where(returned.c.run_id == bindparam("run"), returned.c.start == bindparam("first"))
)
_TASK = Prepared(select(*TASK_COLUMNS).where(tasks.c.id == bindparam("task")))
_PENDING = Prepared(
    select(*TASK_COLUMNS)
    .where(
        tasks.c.run_id == bindparam("run"),
        tasks.c.state == TaskState.PENDING,
        tasks.c.id > bindparam("after"),
    )
    .order_by(tasks.c.id)
    .limit(bindparam("count"))
)
_PENDING_EXAMPLES = Prepared(
    select(func.coalesce(func.sum(tasks.c.examples), 0)).where(
        tasks.c.run_id == bindparam("run"), tasks.c.state == TaskState.PENDING
    )
)
_NEW_TASK = Prepared(
    insert(tasks)
    .values({name: bindparam(name) for name in _TASK_FIELDS if name != "id"})
    .returning(*TASK_COLUMNS)
)
_NEW_LEASE = Prepared(
    insert(leases)
    .values({field.name: bindparam(field.name) for field in fields(LeaseRow) if field.name != "id"})
    .returning(*_LEASE_COLUMNS)
)
_TASKS = Prepared(select(*TASK_COLUMNS).where(tasks.c.run_id == bindparam("run")).order_by(tasks.c.id))
_LEASE = Prepared(
    select(*_LEASE_COLUMNS).where(
        leases.c.fence == bindparam("fence"),
        leases.c.task_id == bindparam("task"),
        leases.c.worker == bindparam("worker"),
    )
)
_LEASE_BY_ID = Prepared(select(*_LEASE_COLUMNS).where(leases.c.id == bindparam("lease")))
_OPEN = (
    select(*_LEASE_COLUMNS)
    .where(leases.c.run_id == bindparam("run"), leases.c.state == LeaseState.OPEN)
    .order_by(leases.c.id)
)
_ORDINARY = leases.c.repeats.is_(None)
_OPEN_LEASES = Prepared(_OPEN)
_LEASED_TOKENS = Prepared(
    select(func.coalesce(func.sum(leases.c.expected_tokens), 0.0)).where(
        leases.c.run_id == bindparam("run"), leases.c.state == LeaseState.OPEN, _ORDINARY
    )
)
_OPEN_AND_AIMED = Prepared(
    select(
        func.count(),
        func.count().filter(
            leases.c.base_version == bindparam("version"), leases.c.aimed_at <= bindparam("late")
        ),
    ).where(leases.c.run_id == bindparam("run"), leases.c.state == LeaseState.OPEN, _ORDINARY)
)
_HOLDERS = Prepared(
    select(
        func.count(leases.c.worker.distinct()),
        func.count().filter(func.coalesce(leases.c.moved_at, leases.c.granted_at) >= bindparam("since")),
    ).where(leases.c.run_id == bindparam("run"), leases.c.state == LeaseState.OPEN)
)
_OPEN_LEASES_OF_WORKER = Prepared(_OPEN.where(leases.c.worker == bindparam("worker")))
_OPEN_LEASE_OF_TASK = Prepared(
    select(*_LEASE_COLUMNS).where(leases.c.task_id == bindparam("task"), leases.c.state == LeaseState.OPEN)
)
_FIRST_LEASE = Prepared(
    select(*_LEASE_COLUMNS)
    .where(leases.c.run_id == bindparam("run"), leases.c.base_version == bindparam("version"))
    .order_by(leases.c.id)
    .limit(1)
)


def read_free(connection: Connection, run: RunRow) -> Free:
    return Free(
        run.position_cursor, tuple(Span(start, count) for start, count in _FREE.all(connection, run=run.id))
    )


def write_free(connection: Connection, run: RunRow, free: Free) -> None:
    old = set(read_free(connection, run).returned)
    new = set(free.returned)
    for span in old - new:
        _TAKE.run(connection, run=run.id, first=span.start)
    for span in sorted(new - old):
        insert_row(connection, returned, {"run_id": run.id, "start": span.start, "count": span.count})
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
        "seeding": None,
        "created_at": now,
        "changed_at": now,
    }
    (row,) = _NEW_TASK.all(connection, **values)
    return task_row(row)


def get_task(connection: Connection, task: int) -> TaskRow:
    (row,) = _TASK.all(connection, task=task)
    return task_row(row)


def has_task(connection: Connection, task: int) -> bool:
    return _TASK.first(connection, task=task) is not None


def list_tasks(connection: Connection, run_id: int) -> list[TaskRow]:
    return [task_row(row) for row in _TASKS.all(connection, run=run_id)]


def next_pending(connection: Connection, run_id: int, *, worker: str) -> TaskRow | None:
    """The oldest task that waits and that this worker has not failed. Thousands may wait: few are read."""
    after = 0
    while rows := _PENDING.all(connection, run=run_id, after=after, count=LOOKED_AT):
        for row in rows:
            task = task_row(row)
            if worker not in task.failed_by:
                return task
            after = task.id
    return None


def pending_examples(connection: Connection, run_id: int) -> int:
    """Examples of all tasks that wait for a worker."""
    row = _PENDING_EXAMPLES.first(connection, run=run_id)
    return int(row[0]) if row else 0


def task_row(row: Values) -> TaskRow:
    values = dict(zip(_TASK_FIELDS, row, strict=True))
    values["state"] = TaskState(values["state"])
    values["positions"] = tuple(Span(start, count) for start, count in values["positions"])
    values["failed_by"] = tuple(values["failed_by"])
    return TaskRow(**values)


def move_task(
    connection: Connection, task: TaskRow, state: TaskState, *, now: float, **values: object
) -> None:
    check_task_move(task.state, state)
    update_row(connection, tasks, {"id": task.id}, {"state": state, "changed_at": now, **values})


def settle_tasks(connection: Connection, ids: Sequence[int], *, now: float) -> None:
    """Accepted tasks whose reports are in a version now. ValueError if one is in another state."""
    check_task_move(TaskState.ACCEPTED, TaskState.MERGED)
    changed = 0
    for part in parts(ids):
        changed += connection.execute(
            update(tasks)
            .where(tasks.c.id.in_(part), tasks.c.state == TaskState.ACCEPTED)
            .values(state=TaskState.MERGED, changed_at=now)
        ).rowcount
    if changed != len(ids):
        raise ValueError("a task that is not accepted would have been merged")


def task_counts(connection: Connection, run_id: int) -> dict[str, int]:
    query = select(tasks.c.state, func.count()).where(tasks.c.run_id == run_id).group_by(tasks.c.state)
    counts = {str(state): 0 for state in TaskState}
    counts.update({state: int(count) for state, count in connection.execute(query)})
    return counts


def insert_lease(connection: Connection, task: TaskRow, values: dict[str, Any]) -> LeaseRow:
    """Grant: the task must be pending and becomes leased. One that is repeated is merged and stays so."""
    if values["repeats"] is None:
        move_task(connection, task, TaskState.LEASED, now=values["granted_at"])
    elif task.state is not TaskState.MERGED:
        raise ValueError(f"a task that is {task.state} would have been repeated")
    new = {"task_id": task.id, "state": LeaseState.OPEN, "ended_at": None, "reason": "", "tokens": 0}
    (made,) = _NEW_LEASE.all(connection, **values, **new)
    return _lease(made)


def find_lease(connection: Connection, worker: str, *, task: int, fence: str) -> LeaseRow | None:
    """The worker's own lease with this fence; another worker's is as unknown as none."""
    row = _LEASE.first(connection, fence=fence, task=task, worker=worker)
    return None if row is None else _lease(row)


def get_lease(connection: Connection, lease: int) -> LeaseRow:
    (row,) = _LEASE_BY_ID.all(connection, lease=lease)
    return _lease(row)


def open_leases(connection: Connection, run_id: int, *, worker: str | None = None) -> list[LeaseRow]:
    if worker is None:
        found = _OPEN_LEASES.all(connection, run=run_id)
    else:
        found = _OPEN_LEASES_OF_WORKER.all(connection, run=run_id, worker=worker)
    return [_lease(row) for row in found]


def open_and_aimed(connection: Connection, run_id: int, *, version: int, late: float) -> tuple[int, int]:
    """How many leases are open, and how many of them are on that version and aimed at `late` or before.

    Repetitions are left out: no round waits for them.
    """
    row = _OPEN_AND_AIMED.first(connection, run=run_id, version=version, late=late)
    return (int(row[0]), int(row[1])) if row else (0, 0)


def holders(connection: Connection, run_id: int, *, since: float) -> tuple[int, int]:
    """How many workers hold an open lease, and how many of the leases had more tokens since that moment."""
    row = _HOLDERS.first(connection, run=run_id, since=since)
    return (int(row[0]), int(row[1])) if row else (0, 0)


def leased_tokens(connection: Connection, run_id: int) -> float:
    """Tokens that the open leases are expected to bring; repetitions bring none."""
    row = _LEASED_TOKENS.first(connection, run=run_id)
    return float(row[0]) if row else 0.0


def open_lease_of_task(connection: Connection, task: int) -> LeaseRow | None:
    row = _OPEN_LEASE_OF_TASK.first(connection, task=task)
    return None if row is None else _lease(row)


def first_lease(connection: Connection, run_id: int, version: int) -> LeaseRow | None:
    """The first lease granted on this version: it sets the round's beginning and planned end."""
    row = _FIRST_LEASE.first(connection, run=run_id, version=version)
    return None if row is None else _lease(row)


def _lease(row: Values) -> LeaseRow:
    values = list(row)
    values[_LEASE_STATE] = LeaseState(values[_LEASE_STATE])
    return LeaseRow(*values)


def update_lease(connection: Connection, lease: LeaseRow, **values: object) -> None:
    update_row(connection, leases, {"id": lease.id}, values)


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
