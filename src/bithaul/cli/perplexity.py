"""`bithaul evaluate perplexity --dir RUN --data FILE [--train FILE]`: how well a model predicts text.

Lines for people, or with `--json` one object on the last line with the keys of `PerplexityReport` and
`seconds`. Mounted by `bithaul.cli.evaluate`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from bithaul.evaluation.perplexity import PerplexityReport


def perplexity(
    data: Annotated[
        Path,
        typer.Option("--data", help="Text: .txt, one paragraph a line, .jsonl with a text, or a folder."),
    ],
    directory: Annotated[Path, typer.Option("--dir", help="The run's folder, or a model folder.")] = Path(
        "runs/run"
    ),
    text_field: Annotated[
        str, typer.Option("--text-field", help="Field of .jsonl objects to read.")
    ] = "text",
    train: Annotated[
        Path | None, typer.Option("--train", help="Text that the Kneser-Ney floor learns from.")
    ] = None,
    floor: Annotated[
        float, typer.Option("--floor", help="Smaller probabilities become this; 0: none.")
    ] = 1e-6,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Tokens from window to window (half the context).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N lines or documents.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads to use (all cores).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")] = False,
) -> None:
    """Perplexity, unknown share and bits per byte of a text, beside n-grams at the same vocabulary."""
    from bithaul.cli.modelfolder import open_model
    from bithaul.cli.ticker import Ticker
    from bithaul.evaluation.documents import frame, read_documents
    from bithaul.evaluation.perplexity import evaluate_perplexity

    texts = read_documents(data, text_field=text_field)[:limit]
    learned = None if train is None else read_documents(train, text_field=text_field)
    model = open_model(directory, threads=threads)
    requests = bool(model.labels.intents)
    terminal = Console(stderr=as_json, highlight=False, markup=False)
    started = time.perf_counter()
    with terminal.status("reading") as status:
        text = frame(model.tokenizer, texts, requests=requests)
        total = len(text.predicted)
        status.update(f"predicting {total:,} tokens")
        report = evaluate_perplexity(
            model,
            text,
            train=None if learned is None else frame(model.tokenizer, learned, requests=requests),
            floor=floor,
            stride=stride,
            on_progress=Ticker(total, "tokens", console=Console(stderr=True), status=status),
        )
    seconds = time.perf_counter() - started
    _show(report, seconds, terminal)
    if as_json:
        print(json.dumps({**report.as_record(), "seconds": round(seconds, 3)}), flush=True)


def _show(report: PerplexityReport, seconds: float, terminal: Console) -> None:
    r = report
    raised = f"{r.floored_tokens:,} tokens ({r.floored_share:.2%}) raised to the floor of {r.floor:g}"
    lines = [
        f"{r.documents:,} lines, {r.words:,} words, {r.tokens:,} tokens with line ends, {r.bytes:,} bytes",
        f"vocabulary {r.vocabulary:,}; {r.unknown_share:.2%} of the tokens and {r.unknown_word_share:.2%} of "
        "the words unknown",
        f"read as {r.framing}, in windows of {r.context} tokens, {r.stride} new ones in each",
        f"perplexity          {r.perplexity:12,.2f}  [UNK] counted as a token",
        f"  known tokens only {r.perplexity_known:12,.2f}",
        f"  without the floor {r.perplexity_unfloored:12,.2f}  {raised}" if r.floor else "no floor",
        f"  per word          {r.word_perplexity:12,.2f}",
        f"bits per byte       {r.bits_per_byte:12.4f}  the spelling of [UNK] for free",
        f"  spelled           {r.bits_per_byte_spelled:12.4f}  8 bits for each byte of an [UNK]",
    ]
    if r.kneser_ney is None:
        lines.append("no n-gram floor: give the training text with --train")
    else:
        about = (
            f"{r.kneser_ney.order}-grams of {r.kneser_ney.train_tokens:,} tokens, same vocabulary and floor"
        )
        lines.append(f"Kneser-Ney          {r.kneser_ney.perplexity:12,.2f}  {about}")
        lines.append(f"  per word          {r.kneser_ney.word_perplexity:12,.2f}")
        lines.append(f"ratio               {r.ratio:12.3f}  below 1 the model is better than n-grams")
    for line in lines:
        terminal.print(line, soft_wrap=True)
    terminal.print(f"({seconds:.1f} s)")
