"""`bithaul bench step|gemm|coordinator`: how fast this machine trains a model, what its products alone allow,
and what a coordinator on it answers to how many.
"""

from __future__ import annotations

import functools
import json
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer

from bithaul.model.config import load_config
from bithaul.training.bench import bench_gemm, bench_step, examples_of
from bithaul.training.recipe import TrainingRecipe
from bithaul.worker.settings import default_threads

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

Preset = Annotated[str, typer.Option("--preset", help="A preset or a .toml file.")]
Vocab = Annotated[int, typer.Option("--vocab", min=8, help="Vocabulary of a preset.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads; default all cores.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")]


@app.callback()
def _family() -> None:
    """Measure this machine."""


@app.command()
def step(
    preset: Preset = "small",
    threads: Threads = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Steps to time, after 5 to warm up.")] = 20,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Examples in one step.")] = 16,
    shortest: Annotated[
        int | None, typer.Option("--shortest", min=1, help="Targets of the shortest example.")
    ] = None,
    longest: Annotated[
        int | None, typer.Option("--longest", min=1, help="Targets of the longest; default the context.")
    ] = None,
    vocab: Vocab = 5174,
    path: Annotated[
        str | None, typer.Option("--path", help="Force a path such as int_mm+bf16 or cuda.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time whole training steps against fp32 fake quantisation and against the products alone."""
    threads = threads or default_threads()
    config = load_config(preset, vocab_size=vocab)
    top = config.context_length if longest is None else longest
    batch = examples_of(config, count=examples, shortest=shortest or top, longest=top)
    found = bench_step(
        config,
        TrainingRecipe.for_preset(preset, "intents"),
        threads=threads,
        examples=batch,
        steps=steps,
        path=path,
        on_step=(lambda done: _show("step", done, steps)) if sys.stderr.isatty() else None,
    )
    if as_json:
        print(json.dumps(_rounded({"preset": config.name, **asdict(found), **machine(threads)})), flush=True)
        return
    print(f"step: {found.reason}")
    print(f"{config.name}, {found.parameters:,} parameters, {found.tokens_per_step:,} tokens a step")
    print(f"{found.tokens_per_second:12,.0f} tokens/s on {threads} threads (± {found.spread:,.0f})")
    print(f"{found.reference_tokens_per_second:12,.0f} tokens/s fp32 fake quantisation")
    print(f"{found.speedup:12.2f} times as fast")
    print(f"{found.roofline_fraction:12.0%} of the step is matrix products at full speed")
    print(f"{found.peak_memory_mb:12,.0f} MB of memory at most")


@app.command()
def gemm(
    preset: Preset = "small",
    threads: Threads = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=1_000_000, help="Tokens in a step.")] = 1024,
    vocab: Vocab = 5174,
    as_json: Json = False,
) -> None:
    """Time single matrix products at a model's shapes: the ceilings of this machine."""
    threads = threads or default_threads()
    config = load_config(preset, vocab_size=vocab)
    show = functools.partial(_show, "product") if sys.stderr.isatty() else None
    path, found = bench_gemm(config, threads=threads, rows=rows, on_product=show)
    if as_json:
        products = [asdict(product) for product in found]
        record = {"preset": config.name, "path": path.name, "reason": path.reason, "products": products}
        print(json.dumps(_rounded(record | machine(threads))), flush=True)
        return
    print(f"step: {path.reason}")
    for product in found:
        m, k, n = product.shape
        print(f"{product.name:6}{m:8,} x {k:,} x {n:,}".ljust(34), end="")
        print(f"{product.milliseconds:10.3f} ms {product.gops:10,.0f} GOP/s")


@app.command()
def coordinator(
    workers: Annotated[int, typer.Option("--workers", min=2, max=20_000, help="Simulated workers.")] = 1000,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", min=1, help="Measured, of each crowd; default a task and a tenth of it."),
    ] = None,
    task_seconds: Annotated[
        float, typer.Option("--task-seconds", min=1, help="Length of their tasks.")
    ] = 600.0,
    preset: Annotated[str, typer.Option("--preset", help="Model of the large uploads.")] = "large",
    vocab: Vocab = 5174,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Transfers of each kind.")] = 5,
    as_json: Json = False,
) -> None:
    """Ask a coordinator as a crowd of workers does, beside large uploads; compare transfers with nginx."""
    from bithaul.simulation.crowdbench import bench_coordinator

    found = bench_coordinator(
        load_config(preset, vocab_size=vocab),
        workers=workers,
        seconds=1.1 * task_seconds if seconds is None else seconds,
        task_seconds=task_seconds,
        turns=turns,
        say=lambda what: print(what, file=sys.stderr, flush=True),
    )
    if as_json:
        print(json.dumps(_rounded({**found, **machine(default_threads())})), flush=True)
        return
    for part, figures in found.items():
        print(part)
        for key, value in figures.items() if isinstance(figures, dict) else ():
            print(f"  {key}: {value}")


def _show(what: str, done: int, total: int) -> None:
    print(f"\r{what} {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def machine(threads: int) -> dict[str, object]:
    """What a figure was measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "threads": threads,
        "cpu": names[0] if names else platform.processor(),
        "load_average": round(psutil.getloadavg()[0], 2),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _rounded(value: object) -> object:
    """Floats with six significant digits, however deep."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: _rounded(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
        case _:
            return value
