"""Tasks and versions as an operator browses them: filters, pages by key, what each is made of. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from bithaul.coordinator.database.tables import leases, reports, tasks, versions
from bithaul.coordinator.database.versions import VersionRow


@dataclass(frozen=True)
class TaskLine:
    """A task with its newest lease; lease fields are None for a task that nobody had yet."""

    id: int
    state: str
    examples: int
    attempts: int
    reason: str
    created_at: float
    changed_at: float
    worker: str | None
    base_version: int | None
    granted_at: float | None
    ended_at: float | None
    deadline: float | None
    tokens: int | None
    expected_tokens: float | None


_OWN = leases.alias()
_NEWEST = (  # repetitions are nobody's turn at the task
    select(func.max(_OWN.c.id))
    .where(_OWN.c.task_id == tasks.c.id, _OWN.c.repeats.is_(None))
    .correlate(tasks)
    .scalar_subquery()
)
_LINES: Select[Any] = select(
    tasks.c.id,
    tasks.c.state,
    tasks.c.examples,
    tasks.c.attempts,
    tasks.c.reason,
    tasks.c.created_at,
    tasks.c.changed_at,
    leases.c.worker,
    leases.c.base_version,
    leases.c.granted_at,
    leases.c.ended_at,
    leases.c.deadline,
    leases.c.tokens,
    leases.c.expected_tokens,
).select_from(tasks.join(leases, leases.c.id == _NEWEST, isouter=True))


def task_lines(
    connection: Connection,
    run_id: int,
    *,
    count: int,
    state: str = "",
    worker: str = "",
    before: int | None = None,
    tasks_in: Sequence[int] | None = None,
) -> list[TaskLine]:
    """Newest first, those with an id below `before`, of `tasks_in` only. `worker`: who had it last."""
    query = _LINES.where(tasks.c.run_id == run_id).order_by(tasks.c.id.desc()).limit(count)
    if state:
        query = query.where(tasks.c.state == state)
    if worker:
        query = query.where(leases.c.worker == worker)
    if before is not None:
        query = query.where(tasks.c.id < before)
    if tasks_in is not None:
        query = query.where(tasks.c.id.in_(tasks_in))
    return [TaskLine(*row) for row in connection.execute(query)]


def attempts_of(connection: Connection, task: int) -> Sequence[Mapping[str, Any]]:
    """Every lease of a task, oldest first."""
    query = select(
        leases.c.id,
        leases.c.worker,
        leases.c.state,
        leases.c.base_version,
        leases.c.granted_at,
        leases.c.ended_at,
        leases.c.deadline,
        leases.c.tokens,
        leases.c.expected_tokens,
        leases.c.reason,
        leases.c.repeats.is_not(None).label("repetition"),
    ).where(leases.c.task_id == task)
    return [dict(row) for row in connection.execute(query.order_by(leases.c.id)).mappings()]


def version_page(
    connection: Connection, run_id: int, *, count: int, before: int | None = None, kept: bool = False
) -> list[VersionRow]:
    """Newest first, those with a number below `before`; with `kept` only those whose weights are there."""
    query = select(versions).where(versions.c.run_id == run_id).order_by(versions.c.version.desc())
    if before is not None:
        query = query.where(versions.c.version < before)
    if kept:
        query = query.where(versions.c.retired_at.is_(None))
    return [VersionRow(**row) for row in connection.execute(query.limit(count)).mappings()]


def contributions(connection: Connection, run_id: int, version: int) -> list[tuple[str, int, int, float]]:
    """(worker, reports, tokens, mean loss) of what one version was made from."""
    query = (
        select(reports.c.worker, func.count(), func.sum(reports.c.tokens), func.avg(reports.c.loss_mean))
        .where(reports.c.run_id == run_id, reports.c.verdict == "accepted", reports.c.merged_in == version)
        .group_by(reports.c.worker)
        .order_by(reports.c.worker)
    )
    return [(w, int(n), int(tokens), float(loss)) for w, n, tokens, loss in connection.execute(query)]
