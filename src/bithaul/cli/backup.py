"""`bithaul backup`: one run into one file and back, on the coordinator's machine.

`create` works with the coordinator running or not; `restore` makes a new folder and touches no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bithaul.cli.opened import Directory, opened, shown_time
from bithaul.cli.ticker import Ticker
from bithaul.errors import NotFound

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")]

_MIB = 2**20


@app.command()
def create(
    directory: Directory,
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    as_json: Json = False,
) -> None:
    """Write a run into one file that holds no secret, while the coordinator serves."""
    from bithaul.coordinator.services.archive import DATABASE
    from bithaul.coordinator.services.backup import create_backup
    from bithaul.coordinator.settings import load_settings

    known = (directory / DATABASE).is_file() or (directory.is_dir() and load_settings(directory).database_url)
    if directory.is_dir() and not known:  # opening would make one
        raise NotFound(f"There is no run in {directory}; name the folder of one.")
    with opened(directory) as c, _telling("writing") as (on_size, on_progress):
        made = create_backup(c, out, on_size=on_size, on_progress=on_progress)
    if as_json:
        print(json.dumps(asdict(made)))
        return
    print(
        f"{made.file}: run {made.run} at version {made.version}, {made.files} files, "
        f"{made.size / _MIB:,.1f} MiB\nsha256 {made.sha256}\n"
        f"It holds no secret: keep a copy of {directory / 'secrets' / 'pepper'} elsewhere, or every machine "
        "gets a new secret after a restore."
    )


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `bithaul backup create` made.")],
    directory: Annotated[Path, typer.Option("--dir", help="The folder to make; new or empty.")],
    secrets: Annotated[
        Path | None,
        typer.Option(help="The old run's folder secrets/: with its pepper the machines' secrets stay good."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a run's folder from a backup, after verifying all of it."""
    from bithaul.coordinator.services.restore import restore_backup

    with _telling("reading") as (on_size, on_progress):
        done = restore_backup(file, directory, secrets=secrets, on_size=on_size, on_progress=on_progress)
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(
        f"{done.dir}: run {done.run} at version {done.version}, as it was at {shown_time(done.created_at)}; "
        "what was trained later is lost.\nEverybody signs in again."
    )
    if done.clients_to_rotate:
        print(
            f"These need a new secret, by `bithaul keys rotate NAME --dir {directory}` (`bithaul up` does it "
            f"for its own): {', '.join(done.clients_to_rotate)}"
        )
    if done.settings_to_give:
        print(f"No backup holds this; write it into bithaul.toml again: {', '.join(done.settings_to_give)}")


@contextmanager
def _telling(doing: str) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Who hears how much is to be done and how much is, and says it on standard error."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    with console.status(doing) as status:
        ticker: list[Ticker] = []

        def on_size(size: int) -> None:
            ticker[:] = [Ticker(size // _MIB, "MiB", console=console, status=status)]

        def on_progress(done: int) -> None:
            ticker[0](done // _MIB)

        yield on_size, on_progress
