"""Seed tasks ahead of demand, and take a seeding back. Each is one transaction with an audit row.

What was previewed is what is done: the preview's mark names its slices, and when the queue has moved since,
nothing happens. Taking back withdraws what nobody ever had; those positions are free again.
"""

from __future__ import annotations

from dataclasses import dataclass

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, seedings, work
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.queries.seeding import plan_in
from bithaul.errors import Conflict, InvalidInput, NotFound


@dataclass(frozen=True)
class Seeded:
    """`seeding` is its number; `first` and `last` are positions, `examples` those of each task."""

    seeding: int
    tasks: int
    examples: int
    first: int
    last: int


@dataclass(frozen=True)
class Withdrawn:
    """`taken`: tasks that somebody already has or had; they stay."""

    seeding: int
    withdrawn: int
    taken: int
    examples: int  # positions that are free again


def seed_tasks(
    c: Coordinator, *, tasks: int, examples: int, mark: str | None = None, actor: str = "cli"
) -> Seeded:
    """`mark` is that of a preview; without one the slices are whatever is next.

    Raises `InvalidInput` with all that speaks against it, `Conflict` when the queue has moved, `NotFound`.
    """
    now = c.clock.now()
    with c.database.write() as connection:
        run = runs.get_run(connection)
        plan = plan_in(connection, run, tasks=tasks, examples=examples, now=now)
        if plan.problems:
            raise InvalidInput(" ".join(plan.problems), code="cannot_seed")
        if mark is not None and mark != plan.mark:
            raise Conflict(
                "The queue has moved since the preview, so nothing was seeded; look at it again.",
                code="queue_moved",
            )
        work.write_free(connection, run, plan.free)
        number = seedings.insert_seeding(
            connection,
            run.id,
            plan.slices,
            now=now,
            examples=examples,
            first=plan.first,
            last=plan.last,
            made_by=actor[:64],
        )
        detail = (
            f"Seeding {number}: {tasks:,} {_tasks(tasks)} of {examples:,} examples each, "
            f"positions {plan.first:,} to {plan.last:,}."
        )
        record(connection, now, actor=actor, action="task.seed", subject=str(number), detail=detail)
    return Seeded(number, tasks, examples, plan.first, plan.last)


def withdraw_seeding(c: Coordinator, seeding: int, *, actor: str = "cli") -> Withdrawn:
    """Doing it twice does no harm: the second time nothing is left. Raises `NotFound`."""
    now = c.clock.now()
    with c.database.write() as connection:
        run = runs.get_run(connection)
        if not seedings.list_seedings(connection, run.id, count=1, seeding=seeding):
            raise NotFound(f"There is no seeding {seeding}.", code="unknown_seeding")
        waiting = seedings.untouched_tasks(connection, seeding)
        spans = [span for task in waiting for span in task.positions]
        if waiting:
            work.write_free(connection, run, work.read_free(connection, run).give_back(spans))
            seedings.withdraw_tasks(connection, seeding, now=now)
        (after,) = seedings.list_seedings(connection, run.id, count=1, seeding=seeding)
        done = Withdrawn(seeding, len(waiting), after.taken, sum(span.count for span in spans))
        detail = sentence(done)
        record(connection, now, actor=actor, action="task.unseed", subject=str(seeding), detail=detail)
    return done


def sentence(done: Withdrawn) -> str:
    """What taking back did."""
    taken = "none had been taken" if not done.taken else f"{done.taken:,} had already been taken"
    if not done.withdrawn:
        return f"No task of seeding {done.seeding} waits any more: nothing was withdrawn; {taken}."
    were = "was" if done.withdrawn == 1 else "were"
    return (
        f"{done.withdrawn:,} {_tasks(done.withdrawn)} of seeding {done.seeding} {were} withdrawn, "
        f"{done.examples:,} examples went back; {taken}."
    )


def _tasks(count: int) -> str:
    return "task" if count == 1 else "tasks"
