"""A worker behind a home line: transfer times, bytes a trained token, and how much of its time it trains.

A real coordinator and a real worker with `small`, between them `simulation.slowline` as ADSL: 10 Mbit/s down,
1 Mbit/s up, 80 ms there and back, 1 % of segments lost (what it leaves out stands there). Tasks are short;
what a task costs besides training (download, upload, waiting) does not depend on its length: utilisation is
given for the tasks measured and computed for tasks of ten minutes. A row for each codec and way of publishing
weights; the last line is JSON:

    python benchmarks/adsl.py --tasks 3 --task-seconds 30 --codecs int8-block-v1 --weights fp32 bf16
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from datetime import datetime
from pathlib import Path

from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.identity.clients import create_client
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.build import build_corpus
from bithaul.corpus.generator import generate
from bithaul.exchange.deltas import delta_size
from bithaul.exchange.messages import WORKER_SCOPE
from bithaul.exchange.weights import WEIGHTS, weights_named, weights_size
from bithaul.model.config import load_config
from bithaul.model.layout import Layout, layout_of
from bithaul.simulation.slowline import PROFILES, SlowLine
from bithaul.training.recipe import TrainingRecipe

PLANNED = 600.0  # seconds of a usual task


def prepare(
    folder: Path, *, preset: str, codec: str, weights: str, task_seconds: float
) -> tuple[str, Layout]:
    """A run that does not end by itself: the worker's secret and the model's layout."""
    context = load_config(preset, vocab_size=5174).context_length
    data = [list(generate(count=n, seed=0, split=s)) for n, s in ((20_000, "train"), (256, "heldout"))]
    manifest = build_corpus(folder / "corpus", *data, max_tokens=context + 1, seed=0)
    config = load_config(preset, vocab_size=manifest.vocab_size)
    wanted = CreateRun(
        run="adsl",
        model=config,
        recipe=TrainingRecipe.for_preset(preset, "intents").model_dump(mode="json"),
        corpus_dir=folder / "corpus",
        budget_tokens=1e9,
        task_seconds=task_seconds,
        codec=codec,
        weights=weights,
        probe_every=0,
    )
    with closing(open_coordinator(load_settings(folder))) as c:
        create_run(c, wanted)
        return create_client(c, "worker-1", scope=WORKER_SCOPE), layout_of(config)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bithaul", *map(str, arguments)]


def entries(stream: object, *, tasks: int) -> list[dict[str, object]]:
    """The worker's log until `tasks` updates are accepted and one task more has begun to train."""
    found: list[dict[str, object]] = []
    accepted = 0
    for line in stream:  # type: ignore[attr-defined]
        if not line.startswith("{"):
            continue
        found.append(json.loads(line))
        event = found[-1]["event"]
        accepted += event == "update accepted"
        print(f"{event} {found[-1].get('task', '')}", file=sys.stderr, flush=True)
        if event == "trained" and accepted >= tasks:
            return found
    raise SystemExit("the worker ended early")


def measure(
    folder: Path, *, preset: str, codec: str, weights: str, profile: str, tasks: int, task_seconds: float
) -> dict[str, object]:
    secret, layout = prepare(folder, preset=preset, codec=codec, weights=weights, task_seconds=task_seconds)
    coordinator = subprocess.Popen(
        command("coordinator", "--dir", folder, "--port", 0, "--json"), stdout=subprocess.PIPE, text=True
    )
    worker = line = None
    try:
        assert coordinator.stdout is not None
        port = int(json.loads(coordinator.stdout.readline())["url"].rpartition(":")[2])
        line = SlowLine(("127.0.0.1", port), PROFILES[profile])
        worker = subprocess.Popen(
            command(
                *("worker", "--url", line.url, "--client-id", "worker-1", "--state-dir", folder / "worker"),
                *("--threads", 1, "--calibration-seconds", 2, "--json", "--allow-insecure-lan"),
            ),
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "BITHAUL_CLIENT_SECRET": secret},
        )
        log = entries(worker.stderr, tasks=tasks)
        up, down = line.up.bytes, line.down.bytes
    finally:
        for process in (worker, coordinator):
            if process is not None:
                process.kill()
                process.wait()
        if line is not None:
            line.close()
    return told(log, codec=codec, weights=weights, layout=layout, tasks=tasks, up=up, down=down)


def told(
    log: list[dict[str, object]],
    *,
    codec: str,
    weights: str,
    layout: Layout,
    tasks: int,
    up: int,
    down: int,
) -> dict[str, object]:
    """From the end of one training to the end of the next is one cycle; the first task only warms up."""
    at = [(str(e["event"]), datetime.fromisoformat(str(e["timestamp"])).timestamp(), e) for e in log]
    trained = [(time, entry) for event, time, entry in at if event == "trained"]
    accepted = [time for event, time, _ in at if event == "update accepted"]
    begun = [time for event, time, _ in at if event == "task"]
    training = [float(str(entry["seconds"])) for _, entry in trained[1:]]
    cycles = [b[0] - a[0] for a, b in itertools.pairwise(trained)]
    upload = [done - time for (time, _), done in zip(trained, accepted, strict=False)]
    wait = [start - done for done, start in zip(accepted, begun[1:], strict=False)]
    download = [
        time - float(str(entry["seconds"])) - start
        for (time, entry), start in zip(trained[1:], begun[1:], strict=False)
    ]
    besides = statistics.median(c - t for c, t in zip(cycles, training, strict=True))
    speeds = [float(str(entry["tokens"])) / float(str(entry["seconds"])) for _, entry in trained]
    tokens = statistics.median(speeds)
    form, parameters = weights_named(weights), layout.size
    fetched = weights_size(parameters, form) if form.delta is None else delta_size(layout, form)
    return {
        "codec": codec,
        "weights": weights,
        "update_mb": round(up / tasks / 1e6, 2),
        "download_mb_a_task": round(down / (tasks + 1) / 1e6, 2),  # corpus and first weights included
        "download_seconds": round(statistics.median(download), 1),
        "upload_seconds": round(statistics.median(upload), 1),
        "waiting_seconds": round(statistics.median(wait), 1),
        "training_seconds": round(statistics.median(training), 1),
        "utilisation_measured": round(statistics.median(training) / statistics.median(cycles), 3),
        "utilisation_of_600_s": round(PLANNED / (PLANNED + besides), 3),
        "tokens_per_second": round(tokens),
        "parameters": parameters,
        "bytes_a_token_of_600_s": round((up / tasks + fetched) / (PLANNED * tokens), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--profile", choices=PROFILES, default="adsl")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--task-seconds", type=float, default=30.0)
    parser.add_argument("--codecs", nargs="+", default=["int8-block-v1", "int4-block-v1", "topk-2bit-v1"])
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=["fp32"])
    args = parser.parse_args()
    rows = []
    for codec, weights in itertools.product(args.codecs, args.weights):
        folder = Path(tempfile.mkdtemp(prefix="bithaul-adsl-"))
        try:
            rows.append(
                measure(
                    folder,
                    preset=args.preset,
                    codec=codec,
                    weights=weights,
                    profile=args.profile,
                    tasks=args.tasks,
                    task_seconds=args.task_seconds,
                )
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps(rows[-1]), flush=True)
    batch = TrainingRecipe.for_preset(args.preset, "intents").batch_examples * 24  # tokens, about
    per_step = 8 * rows[0]["parameters"] / batch  # type: ignore[operator]  # fp32 gradients, up and down
    print(
        json.dumps(
            {
                "preset": args.preset,
                "profile": args.profile,
                "bytes_a_token_of_data_parallel": round(per_step),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
