"""`bithaul run seed`, `unseed`, `seedings`, `stuck` and `kick`: the queue, on the coordinator's machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bithaul.cli.opened import Directory, Json, opened, shown_time
from bithaul.errors import InvalidInput
from bithaul.visible import visible

if TYPE_CHECKING:
    from bithaul.coordinator.commands.kick import Kicked
    from bithaul.coordinator.queries.seeding import SeedingPreview


def seed(
    tasks: Annotated[int, typer.Argument(min=1, help="How many tasks.")],
    examples: Annotated[int, typer.Argument(min=1, help="Examples in each; whole inner batches.")],
    directory: Directory,
    preview: Annotated[bool, typer.Option("--preview", help="Only show what it would be.")] = False,
    mark: Annotated[
        str | None, typer.Option("--mark", help="A preview's mark: seed this very batch or nothing.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Cut tasks ahead of demand; workers take them first."""
    from bithaul.coordinator.commands.seed_tasks import seed_tasks
    from bithaul.coordinator.queries.seeding import seeding_preview

    with opened(directory) as c:
        if preview:
            shown = seeding_preview(c, tasks=tasks, examples=examples)
            print(shown.model_dump_json() if as_json else _previewed(shown))
            return
        made = seed_tasks(c, tasks=tasks, examples=examples, mark=mark)
    if as_json:
        print(json.dumps(asdict(made)))
        return
    print(
        f"Seeding {made.seeding}: {made.tasks:,} tasks of {made.examples:,} examples, positions "
        f"{made.first:,} to {made.last:,}. Undo it with: bithaul run unseed {made.seeding} --dir {directory}"
    )


def unseed(
    seeding: Annotated[int, typer.Argument(min=1, help="Its number; see `run seedings`.")],
    directory: Directory,
    as_json: Json = False,
) -> None:
    """Withdraw the tasks of a seeding that nobody has taken yet."""
    from bithaul.coordinator.commands.seed_tasks import sentence, withdraw_seeding

    with opened(directory) as c:
        done = withdraw_seeding(c, seeding)
    print(json.dumps(asdict(done)) if as_json else sentence(done))


def seedings(directory: Directory, as_json: Json = False) -> None:
    """List what was seeded and what became of it."""
    from bithaul.coordinator.queries.seeding import seedings_view

    with opened(directory) as c:
        view = seedings_view(c)
    if as_json:
        print(json.dumps([row.model_dump(mode="json") for row in view.rows]))
        return
    print(f"{'seeding':>7} {'tasks':>7} {'examples':>8} {'waiting':>7} {'taken':>7} {'withdrawn':>9}  made")
    for row in view.rows:
        print(
            f"{row.id:7} {row.tasks:7,} {row.examples:8,} {row.waiting:7,} {row.taken:7,} "
            f"{row.withdrawn:9,}  {shown_time(row.made_at)} by {row.made_by}"
        )


def stuck(directory: Directory, as_json: Json = False) -> None:
    """List leased tasks that get nowhere."""
    from bithaul.coordinator.queries.stuck import stuck_tasks

    with opened(directory) as c:
        view = stuck_tasks(c)
    if as_json:
        print(json.dumps([row.model_dump(mode="json") for row in view.rows]))
        return
    for row in view.rows:
        print(f"task {row.task} of {row.worker}: {visible(row.why)}")
    if not view.rows:
        print("No task is stuck.")


def kick(
    directory: Directory,
    task: Annotated[int | None, typer.Argument(min=1, help="A stuck task; see `run stuck`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are stuck.")] = False,
    as_json: Json = False,
) -> None:
    """Take stuck tasks from their workers; they wait for the next ones."""
    from bithaul.coordinator.commands.kick import kick_stuck, kick_task

    if (task is None) != everything:
        raise InvalidInput("Name one task, or kick all that are stuck with --all.")
    with opened(directory) as c:
        kicked = kick_stuck(c) if task is None else kick_task(c, task)
    print(json.dumps(asdict(kicked)) if as_json else _kicked(kicked))


def _kicked(kicked: Kicked) -> str:
    return "\n".join(
        f"Task {k.task} was kicked and waits for the next worker. {k.worker}: {visible(k.why)}"
        for k in kicked.tasks
    )


def _previewed(view: SeedingPreview) -> str:
    if view.problems:
        return "\n".join(["This cannot be seeded.", *view.problems])
    share = "no token budget" if view.budget_share is None else f"{100 * view.budget_share:.1f} %"
    speed = "no worker can take tasks now" if view.seconds is None else f"about {view.seconds:,.0f} s"
    each = "unknown" if view.task_seconds is None else f"about {view.task_seconds:,.0f} s"
    return "\n".join(
        [
            f"tasks       {view.tasks:,} of {view.examples:,} examples",
            f"positions   {view.first:,} to {view.last:,}, {view.returned:,} of them came back before",
            f"passes      {view.passes:.2f} over the corpus, pass {view.first_pass} to {view.last_pass}",
            f"tokens      about {view.tokens:,.0f}",
            f"budget      {share}",
            f"will take   {speed}",
            f"each task   {each}, usually {view.usual_seconds:,.0f} s",
            f"mark        {view.mark}",
            "Nothing has changed. Leave --preview out to do it; with --mark, this batch or nothing.",
        ]
    )
