"""`bithaul evaluate intents --dir RUN --data FILE [--json]`: how well a trained model understands requests.

FILE is JSONL, TSV, CSV or a folder of them. Tables go to the terminal; with `--json` the last line is one
object with `accuracy, slot_f1, exact_match, examples` and the tables' numbers. `app` is the verb `evaluate`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from bithaul.evaluation.intents import IntentReport

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

_CONFUSIONS = 10


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
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N requests.")] = None,
    mistakes: Annotated[int, typer.Option(min=0, help="Also show the first N wrong requests.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads to use (all cores).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")] = False,
) -> None:
    """Intent accuracy, slot F1 and exact match on a file, with a table per intent and the top confusions."""
    from bithaul.cli.modelfolder import open_model
    from bithaul.corpus.importers import read_examples
    from bithaul.evaluation.intents import evaluate_intents

    examples = read_examples(data)[:limit]
    model = open_model(directory, threads=threads)
    terminal = Console(stderr=as_json, highlight=False, markup=False)
    started = time.perf_counter()
    with terminal.status(f"evaluating {len(examples):,} requests") as status:
        report = evaluate_intents(
            model,
            examples,
            on_progress=lambda done: status.update(f"evaluated {done:,} of {len(examples):,}"),
        )
    seconds = time.perf_counter() - started
    _show(report, seconds, terminal, mistakes=mistakes)
    if report.unknown_intents:
        names = ", ".join(report.unknown_intents[:_CONFUSIONS])
        print(
            f"warning: {len(report.unknown_intents)} intents of {data} are unknown to the model and count as "
            f"errors: {names}",
            file=sys.stderr,
        )
    if as_json:
        print(json.dumps({**report.as_record(), "seconds": round(seconds, 3)}), flush=True)


def _show(report: IntentReport, seconds: float, terminal: Console, *, mistakes: int) -> None:
    table = Table(title="per intent", title_justify="left")
    table.add_column("intent", overflow="fold")
    for column in ("n", "precision", "recall", "f1", "exact"):
        table.add_column(column, justify="right")
    for row in report.per_intent:
        table.add_row(row.intent, str(row.n), *map(_percent, (row.precision, row.recall, row.f1, row.exact)))
    terminal.print(table)
    if report.per_slot:
        slots = Table(title="per slot", title_justify="left")
        slots.add_column("slot", overflow="fold")
        for column in ("n", "precision", "recall", "f1"):
            slots.add_column(column, justify="right")
        for slot in report.per_slot:
            slots.add_row(slot.slot, str(slot.n), *map(_percent, (slot.precision, slot.recall, slot.f1)))
        terminal.print(slots)
    for confusion in report.confusion[:_CONFUSIONS]:
        terminal.print(f"{confusion.count:5}  {confusion.gold} taken for {confusion.predicted}")
    for wrong in report.mistakes[:mistakes]:
        said, right = wrong.example.text, wrong.example.label_json()
        terminal.print(f"\nsaid   {said}\nright  {right}\nmodel  {wrong.parse.to_json()}")
    f1 = "no slots" if report.slot_f1 is None else f"slot F1 {_percent(report.slot_f1)}"
    terminal.print(
        f"accuracy {_percent(report.accuracy)}  {f1}  exact match {_percent(report.exact_match)}  "
        f"({report.examples:,} requests in {seconds:.1f} s)"
    )


def _percent(share: float) -> str:
    return f"{share:.1%}"
