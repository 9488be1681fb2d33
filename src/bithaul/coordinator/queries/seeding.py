"""Seeding before it is done, and the seedings there are. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs, seedings, work
from bithaul.coordinator.database.runs import RunRow
from bithaul.exchange.messages import RunState
from bithaul.rounds.seeding import SeedingFacts, SeedingPlan, plan_seeding, usual_examples

SHOWN = 50  # seedings
SUGGESTED_EACH = 4  # tasks for each worker that may work


class SeedingPreview(BaseModel):
    """What a seeding would be. With `problems` it cannot be done, and the rest is empty.

    `examples` of one task. Positions and passes count through the whole order; a pass has the number that
    people count by, from 1. `mark` given to the seeding makes sure that it is this one.
    """

    model_config = ConfigDict(frozen=True)

    tasks: int
    examples: int
    problems: list[str]
    mark: str = ""
    first: int | None = None
    last: int | None = None
    returned: int = 0  # of all its examples, those that came back from earlier tasks
    passes: float = 0.0  # over the corpus
    first_pass: int | None = None
    last_pass: int | None = None
    tokens: float = 0.0  # about
    budget_share: float | None = None  # None: the run has no token budget
    seconds: float | None = None  # about, at the fleet's present speed; None: nobody can work now
    task_seconds: float | None = None  # about, one of them for a middling worker
    usual_seconds: float = 0.0  # a task that a claim cuts


class SeedingView(BaseModel):
    """`taken`: somebody has or had it; `waiting` ones can still be withdrawn."""

    model_config = ConfigDict(frozen=True)

    id: int
    tasks: int
    examples: int
    first: int
    last: int
    made_at: float
    made_by: str
    withdrawn_at: float | None
    waiting: int
    taken: int
    withdrawn: int


class SeedingsView(BaseModel):
    """The newest first. The suggestion: tasks as long as the run's, a few for each worker."""

    model_config = ConfigDict(frozen=True)

    now: float
    run: str | None
    state: str
    batch_examples: int
    suggested_tasks: int
    suggested_examples: int
    rows: list[SeedingView]


def seeding_preview(c: Coordinator, *, tasks: int, examples: int) -> SeedingPreview:
    """Raises `NotFound` when no run was created."""
    now = c.clock.now()
    with c.database.read() as connection:
        run = runs.get_run(connection)
        plan = plan_in(connection, run, tasks=tasks, examples=examples, now=now)
        if plan.problems:
            return SeedingPreview(tasks=tasks, examples=examples, problems=list(plan.problems))
        corpus = sum(shard.examples for shard in runs.list_shards(connection, run.id, "train"))
        speeds = _speeds(connection, now=now)
    total = tasks * examples
    tokens = total * run.tokens_per_example
    below = sum(
        min(span.end, run.position_cursor) - span.start
        for slice_ in plan.slices
        for span in slice_
        if span.start < run.position_cursor
    )
    return SeedingPreview(
        tasks=tasks,
        examples=examples,
        problems=[],
        mark=plan.mark,
        first=plan.first,
        last=plan.last,
        returned=below,
        passes=total / corpus if corpus else 0.0,
        first_pass=plan.first // corpus + 1 if corpus else None,
        last_pass=plan.last // corpus + 1 if corpus else None,
        tokens=tokens,
        budget_share=None if run.budget_tokens is None else tokens / run.budget_tokens,
        seconds=tokens / sum(speeds) if speeds else None,
        task_seconds=tokens / tasks / _middle(speeds) if speeds else None,
        usual_seconds=run.task_seconds,
    )


def _speeds(connection: Connection, *, now: float) -> list[float]:
    """Of all that may work now; tokens per second, the slowest first."""
    return sorted(w.planning_speed for w in fleet.list_workers(connection) if w.may_work(now))


def _middle(speeds: Sequence[float]) -> float:
    return speeds[len(speeds) // 2] if speeds else 0.0


def plan_in(connection: Connection, run: RunRow, *, tasks: int, examples: int, now: float) -> SeedingPlan:
    """The same in the transaction that does it."""
    waiting = work.pending_examples(connection, run.id) * run.tokens_per_example
    covered = runs.spent(connection, run.id).covered + waiting
    endless = float("inf")
    facts = SeedingFacts(
        free=work.read_free(connection, run),
        finished=run.state is RunState.FINISHED,
        batch_examples=run.batch_examples,
        tokens_per_example=run.tokens_per_example,
        remaining_tokens=endless if run.budget_tokens is None else run.budget_tokens - covered,
        remaining_seconds=(
            endless if run.budget_seconds is None else run.budget_seconds - run.seconds_at(now)
        ),
    )
    return plan_seeding(facts, tasks=tasks, examples=examples)


def seedings_view(c: Coordinator) -> SeedingsView:
    """Works without a run too."""
    now = c.clock.now()
    with c.database.read() as connection:
        run = runs.find_run(connection)
        if run is None:
            return SeedingsView(
                now=now,
                run=None,
                state="none",
                batch_examples=1,
                suggested_tasks=1,
                suggested_examples=1,
                rows=[],
            )
        rows = seedings.list_seedings(connection, run.id, count=SHOWN)
        speeds = _speeds(connection, now=now)
    return SeedingsView(
        now=now,
        run=run.name,
        state=run.state,
        batch_examples=run.batch_examples,
        suggested_tasks=SUGGESTED_EACH * max(1, len(speeds)),
        suggested_examples=usual_examples(
            speed=_middle(speeds),
            task_seconds=run.task_seconds,
            tokens_per_example=run.tokens_per_example,
            batch_examples=run.batch_examples,
        ),
        rows=[_view(row) for row in rows],
    )


def _view(row: seedings.SeedingRow) -> SeedingView:
    return SeedingView(
        id=row.id,
        tasks=row.tasks,
        examples=row.examples,
        first=row.first,
        last=row.last,
        made_at=row.made_at,
        made_by=row.made_by,
        withdrawn_at=row.withdrawn_at,
        waiting=row.waiting,
        taken=row.taken,
        withdrawn=row.withdrawn,
    )
