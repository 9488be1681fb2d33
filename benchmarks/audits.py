"""How alike two honest runs of one audit task are, on machines that compute in different ways, and cheats.

Each machine is a process of its own: one or two threads, the path that this machine chooses, and paths and
instruction sets of lesser ones. Each starts from the same weights with fresh moments, without a residual, and
trains the same examples; its update goes through the codec as it would on the line. Two updates are compared
as the coordinator does (`rounds.audits.likeness`). Cheats are made from the honest updates: half of the
steps, the work of another task, noise of the right length. The last line is JSON. Example:

    python benchmarks/audits.py --corpus truckmate.corpus --steps 120 --tasks 4
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bithaul.exchange.codecs import codec_named, decode
from bithaul.model.layout import layout_of
from bithaul.rounds.audits import likeness
from bithaul.simulation.real import Real

CAPS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "sse": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "+sse2",
    },
}
MACHINES = {  # name: (instruction set, threads, path)
    "own path": ("", 1, None),
    "own path, 2 threads": ("", 2, None),
    "AVX2": ("avx2", 1, None),
    "AVX2, 2 threads": ("avx2", 2, None),
    "fp32 only": ("", 1, "fp32+fp32"),
    "no AVX": ("sse", 1, None),
}
CODECS = ("int8-block-v1", "topk-2bit-v1")
BATCHES = 4000


def progress_of(at: int) -> float:
    """As in a run of `BATCHES` inner steps."""
    return at / BATCHES


def child(folder: Path, machine: str) -> None:
    """Train every task from every base and leave the updates at the marked steps in `folder`."""
    plan = json.loads((folder / "plan.json").read_text())
    _, threads, path = MACHINES[machine]
    real = Real(Path(plan["corpus"]), preset=plan["preset"], workers=4, changes=plan["changes"])
    from bithaul.training.trainer import Trainer

    trainer = Trainer(real.model, real.recipe, label_token=real._label, threads=threads, path=path)
    examples = real._read([shard.id for shard in real._manifest.shards][:1])
    size, most = real.recipe.batch_examples, max(plan["marks"])
    seconds = 0.0
    for base, task in itertools.product(plan["bases"], range(plan["tasks"])):
        start = np.load(folder / f"base.{base}.npy")
        slice_ = [examples[(base * size + i) % len(examples)] for i in task_places(task, most * size)]
        trainer.load(start)
        trainer.reset_moments()
        found: dict[int, np.ndarray] = {}

        def note(step, found=found, start=start):
            if step.steps in plan["marks"]:
                found[step.steps] = start - trainer.vector()
            return True

        began = time.perf_counter()
        trainer.train(
            slice_,
            progress_start=progress_of(base),
            progress_end=progress_of(base + most),
            seed=1000 * base + task,
            on_step=note,
        )
        seconds += time.perf_counter() - began
        for mark, update in found.items():
            np.save(folder / f"{name_of(machine)}.{base}.{task}.{mark}.npy", update)
    print(json.dumps({"path": trainer.path.name, "seconds": round(seconds, 1)}))


def task_places(task: int, count: int) -> range:
    return range(task * count, (task + 1) * count)


def name_of(machine: str) -> str:
    return machine.replace(" ", "-").replace(",", "")


def make_bases(folder: Path, real: Real, bases: Sequence[int]) -> None:
    """Weights after so many inner steps of one worker; the first are the seeded ones."""
    from bithaul.model.init import initial_vector

    trainer = real.alone()
    trainer.load(initial_vector(real.model, seed=1))
    examples, done = real._read([shard.id for shard in real._manifest.shards][:1]), 0
    size = real.recipe.batch_examples
    for base in sorted(bases):
        if base > done:
            trainer.train(
                [examples[-1 - i % len(examples)] for i in range((base - done) * size)],
                progress_start=progress_of(done),
                progress_end=progress_of(base),
                seed=0,
            )
            done = base
        np.save(folder / f"base.{base}.npy", trainer.vector())


def encoded(codec_name: str, layout, update: np.ndarray) -> np.ndarray:
    """What the coordinator decodes."""
    codec = codec_named(codec_name)
    return decode(codec, codec.encode(np.array(update), layout), layout)


def like(a: np.ndarray, b: np.ndarray) -> float:
    wide = np.stack([a, b]).astype(np.float64)
    products = np.einsum("ik,jk->ij", wide, wide)
    return float(likeness(products[0, 0], products[0, 1], products[1, 1]))


def compared(folder: Path, plan: dict, machines: Sequence[str], layout) -> Iterator[dict]:
    random = np.random.default_rng(0)
    for codec, base, mark in itertools.product(CODECS, plan["bases"], plan["marks"]):
        honest, half, stolen, noise = [], [], [], []
        pairs: dict[str, list[float]] = {}
        for task in range(plan["tasks"]):
            read = {
                m: encoded(codec, layout, np.load(folder / f"{name_of(m)}.{base}.{task}.{mark}.npy"))
                for m in machines
            }
            for a, b in itertools.combinations(machines, 2):
                pairs.setdefault(f"{a} / {b}", []).append(like(read[a], read[b]))
                honest.append(pairs[f"{a} / {b}"][-1])
            mine = read[machines[0]]
            if mark // 2 in plan["marks"]:
                early = np.load(folder / f"{name_of(machines[0])}.{base}.{task}.{mark // 2}.npy")
                half.append(like(mine, encoded(codec, layout, early)))
            if task:
                other = np.load(folder / f"{name_of(machines[0])}.{base}.{task - 1}.{mark}.npy")
                stolen.append(like(mine, encoded(codec, layout, other)))
            fake = random.standard_normal(mine.size).astype(np.float32)
            fake *= np.linalg.norm(mine) / np.linalg.norm(fake)
            noise.append(like(mine, encoded(codec, layout, fake)))
        yield {
            "codec": codec,
            "base": base,
            "steps": mark,
            "pairs": len(honest),
            "lowest": round(min(honest), 4),
            "median": round(statistics.median(honest), 4),
            "below 0.9": sum(x < 0.9 for x in honest),
            "half": round(max(half), 4) if half else None,
            "another task": round(max(stolen), 4) if stolen else None,
            "noise": round(max(noise), 4),
            "by pair": {k: round(min(v), 4) for k, v in pairs.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--preset", default="small")
    parser.add_argument(
        "--steps", type=int, default=120, help="the longest task; half, a quarter... of it too"
    )
    parser.add_argument("--bases", type=int, nargs="+", default=[0, 300])
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--machines", nargs="+", default=list(MACHINES), choices=list(MACHINES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.folder, given.child)
        return
    marks = [given.steps // 8, given.steps // 4, given.steps // 2, given.steps]
    changes = {"dropout": given.dropout} if given.dropout else {}
    plan = {
        "corpus": str(given.corpus.resolve()),
        "preset": given.preset,
        "bases": given.bases,
        "tasks": given.tasks,
        "marks": marks,
        "changes": changes,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(plan))
        real = Real(given.corpus, preset=given.preset, workers=4, changes=changes)
        make_bases(folder, real, given.bases)
        paths = {}
        for machine in given.machines:
            cap = MACHINES[machine][0]
            command = [sys.executable, __file__, "--corpus", str(given.corpus), "--child", machine]
            command += ["--folder", str(folder)]
            done = subprocess.run(
                command, env=os.environ | CAPS.get(cap, {}), stdout=subprocess.PIPE, text=True, check=True
            )
            paths[machine] = json.loads(done.stdout.splitlines()[-1])
            print(machine, paths[machine], file=sys.stderr, flush=True)
        rows = list(compared(folder, plan, given.machines, layout_of(real.model)))
    for row in rows:
        print({k: v for k, v in row.items() if k != "by pair"})
    facts = {"machine": platform.processor() or platform.machine(), "date": time.strftime("%Y-%m-%d")}
    print(json.dumps({**facts, "plan": {**plan, "corpus": given.corpus.name}, "paths": paths, "rows": rows}))


if __name__ == "__main__":
    main()
