"""How well the loss score of gate 9 tells honest updates from others.

Tasks are trained one after another from the same weights and with the moments that those have, as a worker
does that keeps its own; an update goes through the codec. For each update the loss falls on examples that its
task used and on as many others that it was not given (`rounds.scores`). Cheats: another task's update (copy),
half of the steps, noise of the same length, the sign flipped. The last line is JSON. Example:

    python benchmarks/scores.py --corpus truckmate.corpus --bases 60 600 --tasks 8:24 64:8
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bithaul.exchange.codecs import codec_named, decode
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of
from bithaul.rounds.scores import sample
from bithaul.simulation.real import Real


def encoded(codec_name: str, layout, update: np.ndarray) -> np.ndarray:
    """What the coordinator decodes."""
    codec = codec_named(codec_name)
    return decode(codec, codec.encode(np.array(update), layout), layout)


def losses(trainer, vector: np.ndarray, parts) -> np.ndarray:
    trainer.load(vector)
    return np.array([trainer.evaluate(part).loss for part in parts])


def of_one(falls_own: np.ndarray, falls_other: np.ndarray) -> dict[str, float]:
    """The difference of the two falls, in nats and in its own standard errors."""
    difference = falls_own.mean() - falls_other.mean()
    error = np.sqrt(falls_own.var(ddof=1) / len(falls_own) + falls_other.var(ddof=1) / len(falls_other))
    return {
        "nats": float(difference),
        "errors": float(difference / error) if error > 0 else 0.0,
        "own": float(falls_own.mean()),
        "other": float(falls_other.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--preset", default="small")
    parser.add_argument(
        "--bases", type=int, nargs="+", default=[60, 600], help="inner steps before the tasks"
    )
    parser.add_argument("--tasks", nargs="+", default=["8:24", "64:8"], metavar="STEPS:COUNT")
    parser.add_argument("--codec", default="int8-block-v1")
    parser.add_argument("--cheats", nargs="*", default=["copy", "half", "noise", "flip"])
    parser.add_argument("--of", type=int, default=4000, help="inner steps of the run, for its schedule")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    plan = [tuple(map(int, task.split(":"))) for task in given.tasks]
    random = np.random.default_rng(given.seed)
    real = Real(given.corpus, preset=given.preset, workers=4)
    layout, size = layout_of(real.model), real.recipe.batch_examples
    examples = real._read([shard.id for shard in real._manifest.shards])
    lengths = np.array([len(example) - 1 for example in examples])
    trainer, judge = real.alone(), real.alone()
    trainer.load(initial_vector(real.model, seed=1))
    order = random.permutation(len(examples))
    held = sum(steps * count for steps, count in plan) * size  # the examples of the tasks
    if held >= len(order) // 2:
        raise SystemExit(f"{held} of {len(order)} examples would be used; make the corpus larger.")
    early = order[held:]
    done, rows, began = 0, [], time.perf_counter()
    for base in sorted(given.bases):
        if base > done:
            trainer.train(
                [examples[early[i % len(early)]] for i in range(done * size, base * size)],
                progress_start=done / given.of, progress_end=base / given.of, seed=0,
            )  # fmt: skip
            done = base
        start, moments = trainer.vector(), copy.deepcopy(trainer.state_dict())
        print(f"base {base}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        at = 0
        for steps, count in plan:
            updates, halves, slices = [], [], []
            for task in range(count):
                places = order[at : at + steps * size]
                at += steps * size
                trainer.load(start)
                trainer.load_state_dict(copy.deepcopy(moments))
                half = []

                def note(step, half=half, steps=steps):
                    if step.steps == steps // 2:
                        half.append(start - trainer.vector())  # noqa: B023
                    return True

                trainer.train(
                    [examples[i] for i in places],
                    progress_start=base / given.of, progress_end=(base + steps) / given.of,
                    seed=task, on_step=note,
                )  # fmt: skip
                slices.append(places)
                updates.append(encoded(given.codec, layout, start - trainer.vector()))
                halves.append(encoded(given.codec, layout, half[0]))
            for task, places in enumerate(slices):
                chosen = sample(places, lengths, seed=given.seed + task)
                mine, them = (
                    [[examples[i] for i in part] for part in parts] for parts in (chosen.own, chosen.other)
                )
                before_own, before_other = losses(judge, start, mine), losses(judge, start, them)
                fake = random.standard_normal(layout.size).astype(np.float32)
                fake *= np.linalg.norm(updates[task]) / np.linalg.norm(fake)
                kinds = {"honest": updates[task], "copy": updates[task - 1], "half": halves[task]}
                kinds |= {"noise": fake, "flip": -updates[task]}
                for kind, update in kinds.items():
                    if kind != "honest" and kind not in given.cheats:
                        continue
                    end = start - update
                    found = of_one(
                        before_own - losses(judge, end, mine), before_other - losses(judge, end, them)
                    )
                    rows.append({"base": base, "steps": steps, "task": task, "kind": kind, **found})
            trainer.load(start)
            trainer.load_state_dict(copy.deepcopy(moments))
            table(rows, base, steps)
            print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    facts = {"machine": platform.processor() or platform.machine(), "date": time.strftime("%Y-%m-%d")}
    said = {"codec": given.codec, "preset": given.preset, "bases": given.bases, "tasks": given.tasks}
    print(json.dumps({**facts, **said, "rows": rows}))


def table(rows: Sequence[dict], base: int, steps: int) -> None:
    here = [row for row in rows if (row["base"], row["steps"]) == (base, steps)]
    for kind in dict.fromkeys(row["kind"] for row in here):
        of = [row for row in here if row["kind"] == kind]
        nats, errors = [row["nats"] for row in of], [row["errors"] for row in of]
        print(
            f"base {base} steps {steps} {kind:7} positive {sum(x > 0 for x in nats)} of {len(of)}; "
            f"nats {min(nats):.4f} {statistics.median(nats):.4f} {max(nats):.4f}; "
            f"errors {min(errors):.2f} {statistics.median(errors):.2f} {max(errors):.2f}; "
            f"fall own {statistics.fmean(r['own'] for r in of):.4f} "
            f"other {statistics.fmean(r['other'] for r in of):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
