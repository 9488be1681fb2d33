"""`bithaul workers`: look at a run's workers and say what their updates weigh, on the coordinator's machine.

Works on the run's folder, with the coordinator running or not. `bithaul worker` is the worker itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from bithaul.cli.opened import Directory, Json, opened
from bithaul.visible import visible

if TYPE_CHECKING:
    from bithaul.coordinator.database.fleet import WorkerRow

app = typer.Typer(no_args_is_help=True)

Worker = Annotated[str, typer.Argument(help="The worker's client id; see `workers list`.")]


@app.command("list")
def list_workers(directory: Directory, as_json: Json = False) -> None:
    """List workers: state, weight and why, accepted updates, credit."""
    from bithaul.coordinator.queries.progress import progress

    with opened(directory) as c:
        rows = progress(c).workers
    if as_json:
        print(json.dumps([row.model_dump(mode="json") for row in rows]))
        return
    for row in rows:
        why = "; ".join(words for words in (row.why, row.way_out) if words)
        print(
            f"{row.name:24} {row.state:8} {row.standing:10} weight {row.weight:<5g} {row.accepted:6} updates "
            f"{row.credited:14,} tokens  {visible(why)}".rstrip()
        )


@app.command()
def drain(
    worker: Worker,
    directory: Directory,
    off: Annotated[bool, typer.Option("--off", help="Take it back.")] = False,
    as_json: Json = False,
) -> None:
    """Let a worker finish its step, report, and take no more work."""
    from bithaul.coordinator.commands.steer import drain_worker

    with opened(directory) as c:
        drain_worker(c, worker, on=not off)
    words = "takes work again" if off else "finishes its step and takes no more work"
    print(json.dumps({"worker": worker, "drained": not off}) if as_json else f"{worker} {words}.")


@app.command("set-aside")
def set_aside(
    worker: Worker,
    directory: Directory,
    reason: Annotated[str, typer.Option(help="What its owner is told.")] = "",
    as_json: Json = False,
) -> None:
    """Give a worker no more work; what it still reports is credited, not merged."""
    from bithaul.coordinator.commands.standing import set_aside_worker

    with opened(directory) as c:
        _print(set_aside_worker(c, worker, reason=reason), c.clock.now(), as_json=as_json)


@app.command()
def restore(worker: Worker, directory: Directory, as_json: Json = False) -> None:
    """Put a worker on probation, whatever it was: set aside, resting, pinned."""
    from bithaul.coordinator.commands.standing import restore_worker

    with opened(directory) as c:
        _print(restore_worker(c, worker), c.clock.now(), as_json=as_json)


@app.command()
def pin(worker: Worker, directory: Directory, as_json: Json = False) -> None:
    """Give a worker full weight, whatever the gates say: for machines of your own."""
    from bithaul.coordinator.commands.standing import pin_worker

    with opened(directory) as c:
        _print(pin_worker(c, worker), c.clock.now(), as_json=as_json)


def _print(row: WorkerRow, now: float, *, as_json: bool) -> None:
    trust = row.trust.at(now)
    standing, weight = str(trust.standing), trust.weight(now)
    if as_json:
        told = {"worker": row.id, "standing": standing, "weight": weight, "why": trust.why}
        print(json.dumps(told))
        return
    print(f"{row.id} is {standing}, weight {weight:g} ({visible(trust.why)}).")
