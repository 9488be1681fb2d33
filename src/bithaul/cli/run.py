"""`bithaul run`: look at a run and steer it, on the coordinator's machine.

Works on the run's folder, with the coordinator running or not; a running one hears of it within a moment.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bithaul.cli import queue
from bithaul.cli.opened import Directory, Json, opened
from bithaul.errors import BithaulError, NotFound
from bithaul.visible import visible

if TYPE_CHECKING:
    from bithaul.coordinator.queries.runs import RunView, VersionView

app = typer.Typer(no_args_is_help=True)

LAST_VERSIONS = 12  # that `show` prints


@app.command("list")
def list_runs(
    root: Annotated[Path, typer.Option("--in", help="The folder whose folders are runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs in a folder."""
    from bithaul.coordinator.queries.runs import run_view

    if not root.is_dir():
        raise NotFound(f"There is no folder {root}; name the one that holds your runs with --in.")
    found: list[dict[str, object]] = []
    for folder in sorted(path for path in root.glob("*") if _holds_run(path)):
        try:
            with opened(folder) as c:
                view = run_view(c)
        except BithaulError as error:
            found.append({"dir": str(folder), "error": error.error_code, "detail": error.message})
            continue
        kept = view.model_dump(mode="json", include={"run", "state", "version", "progress", "tokens"})
        found.append({"dir": str(folder)} | kept)
    if as_json:
        print(json.dumps(found))
        return
    for row in found:
        if "error" in row:
            print(f"{row['dir']:32} {visible(str(row['detail']))}")
            continue
        done = f"{100 * float(str(row['progress'])):.1f} %"
        print(
            f"{row['dir']:32} {row['state']:9} version {row['version']:<6} {done:>7}  {row['tokens']} tokens"
        )


def _holds_run(folder: Path) -> bool:
    """Its database is a file in it, or one that its settings name."""
    from bithaul.coordinator.settings import load_settings

    if not folder.is_dir():
        return False
    if (folder / "coordinator.db").exists():
        return True
    try:
        return (folder / "bithaul.toml").exists() and bool(load_settings(folder).database_url)
    except BithaulError:
        return True  # opening it says what is wrong


@app.command()
def show(directory: Directory, as_json: Json = False) -> None:
    """Show a run, its options and its versions."""
    from bithaul.coordinator.queries.runs import run_view

    with opened(directory) as c:
        view = run_view(c)
    print(view.model_dump_json() if as_json else _told(view))


@app.command()
def pause(directory: Directory, as_json: Json = False) -> None:
    """Lease nothing more until resumed; tasks under way end and are merged."""
    from bithaul.coordinator.commands.steer import pause_run

    with opened(directory) as c:
        state = str(pause_run(c).state)
    print(json.dumps({"state": state}) if as_json else f"The run is {state}.")


@app.command()
def resume(directory: Directory, as_json: Json = False) -> None:
    """Undo a pause, also one by an automatic rollback."""
    from bithaul.coordinator.commands.steer import resume_run

    with opened(directory) as c:
        state = str(resume_run(c).state)
    print(json.dumps({"state": state}) if as_json else f"The run is {state}.")


@app.command()
def rollback(
    version: Annotated[int, typer.Argument(min=1, help="The version to go back to; see `run show`.")],
    directory: Directory,
    as_json: Json = False,
) -> None:
    """Put an older version in force again, and give up what was merged after it."""
    from bithaul.coordinator.commands.roll_back import roll_back

    with opened(directory) as c:
        back = roll_back(c, version)
    if as_json:
        print(json.dumps(asdict(back)))
        return
    print(
        f"The weights of version {back.restored} are in force again, as version {back.version}; "
        f"{back.discarded_tasks} tasks were given up and wait to be done again."
    )


for command in (queue.seed, queue.unseed, queue.seedings, queue.stuck, queue.kick):
    app.command()(command)


def _told(view: RunView) -> str:
    options = " ".join(f"{key}={value}" for key, value in view.merge_options.items())
    lines = [
        f"run         {view.run}",
        f"state       {view.state}" + (f": {visible(view.paused_because)}" if view.paused_because else ""),
        f"progress    {100 * view.progress:.1f} %, {view.tokens:,} tokens, {view.seconds:,.0f} s of training",
        f"merge rule  {view.merge_rule} {options}".rstrip(),
        f"gates       {' '.join(view.gates) or 'none'}",
        f"codec       {view.codec}",
        f"weights     {view.weights}",
        "",
        f"{'version':>9} {'tokens':>14} {'workers':>7} {'train':>8} {'held-out':>8}",
        *(_line(row) for row in view.versions[-LAST_VERSIONS:]),
    ]
    return "\n".join(lines)


def _line(row: VersionView) -> str:
    words = []
    if row.restores is not None:
        by = "automatic rollback" if row.automatic else "rollback"
        words.append(f"{by} to {row.restores}")
    if not row.in_force:
        words.append("given up")
    if not row.kept:
        words.append("weights deleted")
    losses = (row.train_loss, row.heldout_loss)
    told = " ".join(f"{loss:8.4f}" if loss is not None else f"{'-':>8}" for loss in losses)
    return f"{row.version:9} {row.tokens:14,} {row.contributors:7} {told}  {', '.join(words)}".rstrip()
