"""Tokens per second of our training step against fp32 fake quantisation in eager torch, in one run.

Both train the same preset on the same batches, one step of each in turn, so that other load hits both alike.
The whole step is timed: packing, forward, loss, backward, clipping, AdamW. The last line is JSON. Example:

    python benchmarks/step.py --preset small --threads 1 --steps 20
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import torch

from bithaul.model.config import load_config
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer

WARM_UP_STEPS = 5


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="small")
    parser.add_argument("--vocab", type=int, default=5174)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--shortest", type=int, default=16, help="targets per example, uniformly distributed")
    parser.add_argument("--longest", type=int, default=46)
    parser.add_argument("--path", default=None)
    args = parser.parse_args()

    config = load_config(args.preset, vocab_size=args.vocab)
    recipe = TrainingRecipe.for_preset(args.preset, "intents").model_copy(
        update={"batch_examples": args.examples}
    )
    trainers = {
        "ours": Trainer(config, recipe, label_token=None, threads=args.threads, path=args.path),
        "reference": Trainer(
            config, recipe, label_token=None, threads=args.threads, path="fp32+fp32", plain=True
        ),
    }
    random = np.random.default_rng(0)
    lengths = random.integers(args.shortest, args.longest + 1, args.examples)
    batch = [random.integers(0, args.vocab, n + 1, dtype=np.int32) for n in lengths]
    tokens = int(lengths.sum())
    wall: dict[str, list[float]] = {name: [] for name in trainers}
    busy: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(WARM_UP_STEPS + args.steps):
        for name, trainer in trainers.items():
            started, used = time.perf_counter(), time.process_time()
            trainer.train(batch, progress_start=0.1, progress_end=0.1, seed=step)
            if step >= WARM_UP_STEPS:
                wall[name].append(time.perf_counter() - started)
                busy[name].append(time.process_time() - used)
    speed = {name: tokens / statistics.median(seconds) for name, seconds in wall.items()}
    cpu_speed = {name: tokens / statistics.median(seconds) for name, seconds in busy.items()}
    for name in trainers:
        print(f"{name}: {speed[name]:,.0f} tokens/s, {cpu_speed[name]:,.0f} tokens per CPU second")
    result = {
        "preset": args.preset,
        "parameters": sum(p.numel() for p in trainers["ours"].model.parameters()),
        "tokens_per_step": tokens,
        "tokens_per_second": round(speed["ours"], 1),
        "tokens_per_second_reference": round(speed["reference"], 1),
        "ratio": round(speed["ours"] / speed["reference"], 2),
        "tokens_per_cpu_second": round(cpu_speed["ours"], 1),
        "tokens_per_cpu_second_reference": round(cpu_speed["reference"], 1),
        "cpu_ratio": round(cpu_speed["ours"] / cpu_speed["reference"], 2),
        "path": trainers["ours"].path.reason,
        "threads": args.threads,
        "steps": args.steps,
        "cpu": cpu_name(),
        "load_average": round(psutil.getloadavg()[0], 2),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
