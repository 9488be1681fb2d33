"""Merge rules, faults and poison on a real model at equal tokens: what each does to the held-out loss.

Every arm trains the same preset on the same corpus for the same number of tokens. The distributed ones are
rehearsals (`bithaul simulate --corpus`): real coordinator, real worker, time-sized tasks on machines of which
the fastest is three times as fast as the slowest, lines of 1 to 10 Mbit/s up. The others are one process:
`data parallel N` takes the batches of N workers together, `one process` that of one worker. Each arm runs on
one thread, `--processes` at a time; its line is printed when it is done, the last line is JSON. Example:

    bithaul corpus generate --out requests --count 20000 --heldout 1000
    bithaul corpus tokenize requests --out corpus
    python benchmarks/studies/merge_rules.py --corpus corpus --tokens 3e5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from bithaul.corpus.build import CorpusManifest
from bithaul.corpus.shards import Shard
from bithaul.model.init import initial_vector
from bithaul.rounds.positions import Span, pieces
from bithaul.simulation.real import Real
from bithaul.simulation.scenario import Rehearsal, scenario_named

PLAIN = {"mu": 0.0, "eta": 1.0}


@dataclass(frozen=True)
class Arm:
    """`rule` "": one process with the batches of `workers` together."""

    name: str
    workers: int = 1
    rule: str = ""
    options: Mapping[str, float | str] = field(default_factory=dict)
    scenario: str = "calm"
    gates: tuple[str, ...] = ()
    poisoned: int = 0
    poison: str = "sign_flip"
    codec: str | None = None
    batch_of: int = 1  # the workers whose recipe one process takes


ARMS = [
    Arm("buffered, 8 workers", 8, "buffered_nesterov", PLAIN),
    Arm("sync, 8 workers", 8, "sync_diloco", PLAIN),
    Arm("buffered, 4 workers", 4, "buffered_nesterov", PLAIN),
    Arm("sync, 4 workers", 4, "sync_diloco", PLAIN),
    Arm("data parallel, 8 workers", 8),
    Arm("data parallel, 4 workers", 4),
    Arm("one process, one worker's batch", 1, batch_of=8),
    Arm("buffered, 8 workers, storm", 8, "buffered_nesterov", PLAIN, scenario="storm", gates=("norm",)),
    Arm("buffered, 8 workers, one flips signs", 8, "buffered_nesterov", PLAIN, gates=("norm",), poisoned=1),
    Arm("buffered, 8 workers, one sends NaN", 8, "buffered_nesterov", PLAIN, poisoned=1, poison="nan"),
    Arm("buffered, 8 workers, momentum 0.9", 8, "buffered_nesterov"),
    Arm("sync, 8 workers, momentum 0.9", 8, "sync_diloco"),
    Arm("staleness_sgd, 8 workers", 8, "staleness_sgd"),
    Arm("buffered, 8 workers, fp32 updates", 8, "buffered_nesterov", PLAIN, codec="fp32-v1"),
    Arm("buffered, 8 workers, int4 updates", 8, "buffered_nesterov", PLAIN, codec="int4-block-v1"),
    Arm("sparse_ef, 8 workers", 8, "sparse_ef"),
]


def train(arm: Arm, corpus: Path, *, preset: str, tokens: float, steps: int, seed: int) -> dict[str, object]:
    started = time.perf_counter()
    found = distributed if arm.rule else alone
    result = found(arm, corpus, preset=preset, tokens=tokens, steps=steps, seed=seed)
    return {"arm": arm.name, "seed": seed, **result, "seconds": round(time.perf_counter() - started, 1)}


def distributed(
    arm: Arm, corpus: Path, *, preset: str, tokens: float, steps: int, seed: int
) -> dict[str, object]:
    real = Real(corpus, preset=preset, workers=arm.workers)
    wanted = replace(
        scenario_named(arm.scenario),
        workers=arm.workers,
        rule=arm.rule,
        options=arm.options,
        gates=arm.gates,
        poisoned=arm.poisoned,
        poison=arm.poison,
        codec=arm.codec,
        seed=seed,
    )
    with tempfile.TemporaryDirectory(prefix="bithaul-study-") as folder:
        outcome = Rehearsal(
            real.planned(wanted, tokens=tokens, steps=steps), Path(folder), subject=real
        ).run()
    told = asdict(outcome)
    kept = ("tokens", "versions", "accepted", "verdicts", "faults", "judged", "simulated_hours", "broken")
    return {"heldout_loss": outcome.heldout_loss, **{key: told[key] for key in kept}}


def alone(
    arm: Arm,
    corpus: Path,
    *,
    preset: str,
    tokens: float,
    steps: int,  # noqa: ARG001 - there are no tasks
    seed: int,
) -> dict[str, object]:
    """One process, at the rate that one process learns best with, whatever the batch."""
    theirs = Real(corpus, preset=preset, workers=max(arm.workers, arm.batch_of)).recipe.batch_examples
    real = Real(corpus, preset=preset, workers=1, changes={"batch_examples": theirs * arm.workers})
    trainer = real.alone()
    vector = initial_vector(real.model, seed=seed)
    trainer.load(vector)
    count = round(tokens / real.batch_tokens) * real.recipe.batch_examples
    result = trainer.train(order(corpus, count, seed=seed), progress_start=0.0, progress_end=1.0, seed=seed)
    return {"heldout_loss": real.heldout(trainer.vector()), "tokens": result.tokens, "steps": result.steps}


def order(corpus: Path, count: int, *, seed: int) -> list[object]:
    """The first `count` examples of the run's endless order."""
    names = [s.id for s in CorpusManifest.load(corpus).shards]
    shards = {name: Shard.open(corpus / f"{name}.bin", corpus / f"{name}.idx") for name in names}
    sizes = [len(shard) for shard in shards.values()]
    found: list[object] = []
    for piece in pieces([Span(0, count)], shard_sizes=sizes, seed=seed):
        found += shards[names[piece.shard]].slice(piece.first, piece.count)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--tokens", type=float, default=3e5)
    parser.add_argument("--steps", type=int, default=8, help="inner steps a task, before transfers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="words that the name of an arm must hold, any of them")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    arms = [a for a in ARMS if not args.only or any(word in a.name for word in args.only)]
    options = {"preset": args.preset, "tokens": args.tokens, "steps": args.steps}
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = [
            pool.submit(train, arm, args.corpus, seed=seed, **options) for seed in args.seeds for arm in arms
        ]
        for job in as_completed(jobs):
            rows.append(job.result())
            print(json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: (row["seed"], [a.name for a in arms].index(row["arm"])))
    print(json.dumps({**options, "date": datetime.now(UTC).date().isoformat(), "rows": rows}))


if __name__ == "__main__":
    main()
