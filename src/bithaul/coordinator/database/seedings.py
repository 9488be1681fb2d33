"""Rows of seedings: batches of tasks that an operator cut ahead of demand, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, exists, func, insert, select, update

from bithaul.coordinator.database.tables import leases, seedings, tasks
from bithaul.coordinator.database.work import TASK_COLUMNS, TaskRow, task_row
from bithaul.rounds.leases import TaskState, check_task_move
from bithaul.rounds.positions import Span


@dataclass(frozen=True)
class SeedingRow:
    """`examples` of each task; of its `tasks` some wait that nobody had yet, some were withdrawn."""

    id: int
    tasks: int
    examples: int
    first: int
    last: int
    made_at: float
    made_by: str
    withdrawn_at: float | None
    waiting: int
    withdrawn: int

    @property
    def taken(self) -> int:
        return self.tasks - self.waiting - self.withdrawn


_HAD = exists().where(leases.c.task_id == tasks.c.id)
_UNTOUCHED = (tasks.c.state == TaskState.PENDING, ~_HAD)
_COUNTS = (
    select(
        tasks.c.seeding,
        func.sum(case((_UNTOUCHED[0] & _UNTOUCHED[1], 1), else_=0)).label("waiting"),
        func.sum(case((tasks.c.state == TaskState.CANCELLED, 1), else_=0)).label("withdrawn"),
    )
    .where(tasks.c.seeding.is_not(None))
    .group_by(tasks.c.seeding)
)


def insert_seeding(
    connection: Connection,
    run_id: int,
    slices: Sequence[Sequence[Span]],
    *,
    now: float,
    **values: Any,
) -> int:
    """The seeding with its tasks, which wait; its number."""
    row = {"run_id": run_id, "tasks": len(slices), "made_at": now, **values}
    number = int(connection.execute(insert(seedings).values(**row).returning(seedings.c.id)).scalar_one())
    connection.execute(
        insert(tasks),
        [
            {
                "run_id": run_id,
                "state": TaskState.PENDING,
                "positions": [[span.start, span.count] for span in slice_],
                "examples": sum(span.count for span in slice_),
                "attempts": 0,
                "failed_by": [],
                "reason": "",
                "seeding": number,
                "created_at": now,
                "changed_at": now,
            }
            for slice_ in slices
        ],
    )
    return number


def list_seedings(
    connection: Connection, run_id: int, *, count: int, seeding: int | None = None
) -> list[SeedingRow]:
    """The newest ones, newest first."""
    newest = select(seedings).where(seedings.c.run_id == run_id).order_by(seedings.c.id.desc()).limit(count)
    if seeding is not None:
        newest = newest.where(seedings.c.id == seeding)
    rows = connection.execute(newest).mappings().all()
    counted = _COUNTS.where(tasks.c.seeding.in_([row["id"] for row in rows]))
    counts = {number: (int(w), int(gone)) for number, w, gone in connection.execute(counted)}
    return [
        SeedingRow(
            **{name: value for name, value in row.items() if name != "run_id"},
            waiting=counts[row["id"]][0],
            withdrawn=counts[row["id"]][1],
        )
        for row in rows
    ]


def untouched_tasks(connection: Connection, seeding: int) -> list[TaskRow]:
    """The tasks of a seeding that wait and that nobody ever had."""
    query = select(*TASK_COLUMNS).where(tasks.c.seeding == seeding, *_UNTOUCHED).order_by(tasks.c.id)
    return [task_row(tuple(row)) for row in connection.execute(query)]


def withdraw_tasks(connection: Connection, seeding: int, *, now: float) -> int:
    """Cancel its untouched tasks, which have no positions any more: the caller gives those back.

    How many there were.
    """
    check_task_move(TaskState.PENDING, TaskState.CANCELLED)
    cancelled = connection.execute(
        update(tasks)
        .where(tasks.c.seeding == seeding, *_UNTOUCHED)
        .values(
            state=TaskState.CANCELLED,
            positions=[],
            examples=0,
            reason="withdrawn before anybody had it; its examples went back",
            changed_at=now,
        )
    ).rowcount
    connection.execute(update(seedings).where(seedings.c.id == seeding).values(withdrawn_at=now))
    return int(cancelled)
