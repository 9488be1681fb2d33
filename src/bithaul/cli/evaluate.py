"""`bithaul evaluate intents|perplexity --dir RUN --data FILE [--json]`: measure a trained model.

For intents FILE is JSONL, TSV, CSV or a folder of them. Tables go to the terminal; with `--json` the last
line is one object with `accuracy, slot_f1, exact_match, examples`, the tables' numbers, `out_of_scope`,
`calibration` and `noise`. `app` is the verb `evaluate`; perplexity is in `bithaul.cli.perplexity`.
"""

from __future__ import annotations

import json
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bithaul.cli.perplexity import perplexity

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
app.command()(perplexity)


class Noise(StrEnum):
    """What `--noise` takes."""

    LIGHT = "light"
    HEAVY = "heavy"
    ALL = "all"


@app.callback()
def _family() -> None:
    """Measure a trained model."""


@app.command()
def intents(
    data: Annotated[
        Path, typer.Option("--data", help="Requests with their labels: .jsonl, .tsv, .csv or a folder.")
    ],
    directory: Annotated[Path, typer.Option("--dir", help="The run's folder, or a model folder.")] = Path(
        "runs/run"
    ),
    oos: Annotated[
        Path | None, typer.Option("--oos", help="More requests out of scope; labels are ignored.")
    ] = None,
    oos_score: Annotated[
        str | None,
        typer.Option("--oos-score", help="What tells out of scope from in scope (by the model's intents)."),
    ] = None,
    noise: Annotated[
        Noise | None, typer.Option("--noise", help="Also read the requests with speech noise.")
    ] = None,
    noise_seed: Annotated[int, typer.Option("--noise-seed", help="Equal seeds give equal noise.")] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a reliability diagram, .svg.")] = None,
    confusion: Annotated[
        Path | None, typer.Option("--confusion", help="Write the whole confusion matrix, .csv.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N requests.")] = None,
    mistakes: Annotated[int, typer.Option(min=0, help="Also show the first N wrong requests.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads to use (all cores).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")] = False,
) -> None:
    """Accuracy, slot F1, exact match, out of scope, calibration, noise; tables per intent and slot."""
    from bithaul.cli.evaluatetables import CONFUSIONS, show_audit
    from bithaul.cli.modelfolder import open_model
    from bithaul.cli.ticker import Ticker
    from bithaul.corpus.importers import read_any, read_examples
    from bithaul.evaluation.audit import audit_intents
    from bithaul.evaluation.files import require_kind, write_confusion, write_plot
    from bithaul.evaluation.scope import score_named

    if oos_score is not None:
        score_named(oos_score)
    if plot is not None:
        require_kind(plot, ".svg", "--plot")
    if confusion is not None:
        require_kind(confusion, ".csv", "--confusion")
    examples = read_examples(data)[:limit]
    outside = [] if oos is None else [item.text for item in read_any(oos)]
    levels = ("light", "heavy") if noise is Noise.ALL else () if noise is None else (noise.value,)
    model = open_model(directory, threads=threads)
    terminal = Console(stderr=as_json, highlight=False, markup=False)
    total = len(examples) * (1 + len(levels)) + len(outside)
    started = time.perf_counter()
    with terminal.status(f"evaluating {total:,} requests") as status:
        audit = audit_intents(
            model,
            examples,
            outside=outside,
            scope_score=oos_score,
            noise=levels,
            seed=noise_seed,
            on_progress=Ticker(total, "requests", console=Console(stderr=True), status=status),
        )
    seconds = time.perf_counter() - started
    show_audit(audit, seconds, terminal, mistakes=mistakes)
    unknown = audit.intents.unknown_intents
    if unknown:
        print(
            f"warning: {len(unknown)} intents of {data} are unknown to the model and count as errors: "
            f"{', '.join(unknown[:CONFUSIONS])}",
            file=sys.stderr,
        )
    if oos is not None and audit.out_of_scope is None:
        print(f"warning: no request of {data} is in scope, so nothing tells the two apart", file=sys.stderr)
    if confusion is not None:
        write_confusion(audit.intents.matrix, confusion)
    if plot is not None and audit.calibration is not None:
        write_plot(audit.calibration, plot, title=f"{directory.name} on {data.name}")
    elif plot is not None:
        print(f"warning: {plot} is not written: the model knows no intent of {data}", file=sys.stderr)
    if as_json:
        print(json.dumps({**audit.as_record(), "seconds": round(seconds, 3)}), flush=True)
