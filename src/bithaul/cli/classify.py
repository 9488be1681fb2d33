"""`bithaul classify --dir RUN "take me to dallas"` prints one JSON object; `-` reads requests from a pipe.

With `-` every input line, also an empty one, gives exactly one output line, written at once: a program may
send a line and wait for its answer. `app` is mounted as the verb `classify`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bithaul.inference.classify import Parse

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_READ_BYTES = 1 << 16


@app.command()
def classify(
    words: Annotated[
        list[str],
        typer.Argument(metavar="TEXT", help="The request, or - to read one a line from standard input."),
    ],
    directory: Annotated[Path, typer.Option("--dir", help="The run's folder, or a model folder.")] = Path(
        "runs/run"
    ),
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Most lines of a pipe answered together.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads to use (all cores).")] = None,
    as_json: Annotated[  # noqa: ARG001
        bool, typer.Option("--json", help="Accepted for symmetry: the answer is always JSON.")
    ] = False,
) -> None:
    """Turn a request into an intent with slots: {"text", "intent", "confidence", "slots"}."""
    from bithaul.cli.modelfolder import open_model
    from bithaul.inference.classify import classify as understand
    from bithaul.inference.lines import line_batches

    model = open_model(directory, threads=threads)
    _ = model.grammar  # a model without intents says so before the first line is read
    if words != ["-"]:
        _answer(understand(model, [" ".join(words)])[0])
        return
    descriptor = sys.stdin.fileno()
    for lines in line_batches(lambda: os.read(descriptor, _READ_BYTES), batch=batch):
        for parse in understand(model, lines):
            _answer(parse, flush=False)
        sys.stdout.flush()


def _answer(parse: Parse, *, flush: bool = True) -> None:
    """JSON is UTF-8 whatever the terminal's locale says."""
    if parse.cut:
        beginning = parse.text[:40].strip()
        print(
            f"warning: {beginning!r}... is longer than the model reads; its end was left out", file=sys.stderr
        )
    sys.stdout.buffer.write(parse.to_json().encode() + b"\n")
    if flush:
        sys.stdout.flush()
