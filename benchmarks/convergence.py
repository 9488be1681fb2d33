"""What distribution costs: workers that merge with `sync` against one process with their batches together.

Both sides train the same examples in the same order for the same number of optimizer steps, along the same
schedule: the single process with the inner batch of all workers together and its own rate, each worker with
its own. Trainer, codec with error feedback, and merge rule are the real ones; only HTTP is left out. Every
side runs in a process of its own on one thread, where training is deterministic to the bit. Rows differ in
the steps of one task and in the rate; the ratio of the losses says what learns best. The last line is JSON.
Example:

    python benchmarks/convergence.py --examples 12000 --steps-per-task 5 10 20 40

By default the workers train as the recipe of a run with that many workers says, for two passes over a full
corpus: about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bithaul.corpus.build import build_corpus
from bithaul.corpus.generator import generate
from bithaul.corpus.shards import Shard
from bithaul.corpus.tokenizer import SPECIAL
from bithaul.exchange.codecs import codec_named, decode
from bithaul.exchange.pseudo_gradient import encode_with_feedback, pseudo_gradient
from bithaul.model.config import ModelConfig, load_config
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of
from bithaul.rounds.facts import Contribution, Past
from bithaul.rounds.merging import step
from bithaul.rounds.positions import Span, pieces
from bithaul.rounds.rules import rule_named
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer

FloatVector = npt.NDArray[np.float32]
LABEL_TOKEN = SPECIAL.index("[INTENT]")


@dataclass(frozen=True)
class Data:
    """Token ids: of the training corpus in stored order, of a part of it, and of the held-out split."""

    train: list[npt.NDArray[np.int32]]
    probe: list[npt.NDArray[np.int32]]
    heldout: list[npt.NDArray[np.int32]]
    vocab_size: int

    def slice(self, start: int, count: int, *, seed: int) -> list[npt.NDArray[np.int32]]:
        """The examples at positions `start` to `start + count` of the run's endless order."""
        found: list[npt.NDArray[np.int32]] = []
        for piece in pieces([Span(start, count)], shard_sizes=[len(self.train)], seed=seed):
            found += self.train[piece.first : piece.first + piece.count]
        return found


@dataclass(frozen=True)
class Plan:
    """One side of the comparison. `workers` 1 and `steps_per_task` 0: the single process."""

    config: ModelConfig
    recipe: TrainingRecipe  # inner batch of this side
    steps: int  # optimizer steps of each worker
    workers: int = 1
    steps_per_task: int = 0
    codec: str = "int8-block-v1"
    rule_options: dict[str, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    steps_per_task: int
    peak_lr: float
    versions: int
    tokens: int
    train_loss: float  # of the final weights on a fixed part of the training data
    heldout_loss: float
    seconds: float


def make_data(*, examples: int, heldout: int, seed: int, max_tokens: int) -> Data:
    """A reduced Truck Mate corpus, built by the real builder."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "corpus"
        manifest = build_corpus(
            directory,
            list(generate(count=examples, seed=seed, split="train")),
            list(generate(count=heldout, seed=seed, split="heldout")),
            max_tokens=max_tokens,
            seed=seed,
        )
        train = [e for info in manifest.shards for e in _read(directory, info.id)]
        held = [e for info in manifest.heldout for e in _read(directory, info.id)]
    return Data(train, train[:heldout], held, manifest.vocab_size)


def _read(directory: Path, name: str) -> list[npt.NDArray[np.int32]]:
    shard = Shard.open(directory / f"{name}.bin", directory / f"{name}.idx")
    return [np.array(e) for e in shard.slice(0, len(shard))]


def single(plan: Plan, data: Data) -> Outcome:
    """One process, one pass over everything, no merging."""
    started = time.perf_counter()
    trainer = _trainer(plan)
    theta = initial_vector(plan.config, seed=plan.seed)
    trainer.load(theta)
    count = plan.steps * plan.recipe.batch_examples
    result = trainer.train(
        data.slice(0, count, seed=plan.seed), progress_start=0.0, progress_end=1.0, seed=plan.seed
    )
    return _outcome(trainer, plan, data, versions=1, tokens=result.tokens, started=started)


def distributed(plan: Plan, data: Data) -> Outcome:
    """Rounds of one task per worker, each task on the newest version, then one merge."""
    started = time.perf_counter()
    layout, codec = layout_of(plan.config), codec_named(plan.codec)
    rule = rule_named("sync", plan.rule_options)
    trainers = [_trainer(plan) for _ in range(plan.workers)]
    residuals: list[FloatVector | None] = [None] * plan.workers
    theta, momentum = initial_vector(plan.config, seed=plan.seed), None
    batch, done, tokens, versions = plan.recipe.batch_examples, 0, 0, 1
    while done < plan.steps:
        steps = min(plan.steps_per_task, plan.steps - done)
        updates, weights = [], []
        for number, trainer in enumerate(trainers):
            start = (done * plan.workers + number * steps) * batch
            trainer.load(theta)
            result = trainer.train(
                data.slice(start, steps * batch, seed=plan.seed),
                progress_start=done / plan.steps,
                progress_end=(done + steps) / plan.steps,
                seed=versions * plan.workers + number,
            )
            u = pseudo_gradient(theta, trainer.vector(), exact=codec.lossless)
            payload, residuals[number] = encode_with_feedback(codec, u, residuals[number], layout)
            updates.append(decode(codec, payload, layout))
            weights.append(result.tokens)
        taken = [Contribution(seq, str(seq), w, 0, 0.0) for seq, w in enumerate(weights)]
        theta, momentum, _ = step(rule.plan(taken, past=Past()), theta, momentum, updates)
        done, tokens, versions = done + steps, tokens + sum(weights), versions + 1
    trainers[0].load(theta)
    return _outcome(trainers[0], plan, data, versions=versions, tokens=tokens, started=started)


def _trainer(plan: Plan) -> Trainer:
    return Trainer(plan.config, plan.recipe, label_token=LABEL_TOKEN, threads=1)


def _outcome(
    trainer: Trainer, plan: Plan, data: Data, *, versions: int, tokens: int, started: float
) -> Outcome:
    return Outcome(
        plan.steps_per_task,
        plan.recipe.peak_lr,
        versions,
        tokens,
        trainer.evaluate(data.probe).loss,
        trainer.evaluate(data.heldout).loss,
        time.perf_counter() - started,
    )


def side(job: tuple[Plan, Data]) -> Outcome:
    plan, data = job
    return distributed(plan, data) if plan.steps_per_task else single(plan, data)


def compare(
    data: Data,
    *,
    config: ModelConfig,
    alone: TrainingRecipe,
    theirs: TrainingRecipe,
    steps_per_task: Sequence[int],
    epochs: float,
    workers: int,
    codec: str,
    rule_options: dict[str, float],
    seed: int,
    processes: int,
    lr_factors: Sequence[float] = (1.0,),
) -> dict[str, object]:
    """Every side once; the result as the benchmark prints it, without what was asked.

    `alone` is the recipe of the single process, `theirs` that of each worker; the batches of all workers are
    that of the single process. `lr_factors` multiply the rate of the workers.
    """
    if alone.batch_examples != workers * theirs.batch_examples:
        raise ValueError("the single process must take the batches of all workers together")
    steps = round(epochs * len(data.train) / alone.batch_examples)
    plans = [Plan(config, alone, steps, seed=seed)]
    for factor in lr_factors:
        scaled = theirs.model_copy(update={"peak_lr": theirs.peak_lr * factor})
        plans += [Plan(config, scaled, steps, workers, s, codec, rule_options, seed) for s in steps_per_task]
    jobs = [(plan, data) for plan in plans]
    if processes > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            outcomes = list(pool.map(side, jobs))
    else:
        outcomes = [side(job) for job in jobs]
    base = outcomes[0]
    rows = [
        {
            **{k: round(v, 6) for k, v in asdict(o).items()},
            "train_ratio": round(o.train_loss / base.train_loss, 4),
            "heldout_ratio": round(o.heldout_loss / base.heldout_loss, 4),
        }
        for o in outcomes
    ]
    best = min(rows[1:], key=lambda row: row["heldout_ratio"])
    return {
        "steps": steps,
        "best_steps_per_task": best["steps_per_task"],
        "best_peak_lr": best["peak_lr"],
        "best_train_ratio": best["train_ratio"],
        "best_heldout_ratio": best["heldout_ratio"],
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--examples", type=int, default=50_000, help="training examples of the corpus")
    parser.add_argument("--heldout", type=int, default=512)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps-per-task", type=int, nargs="+", default=[5])
    parser.add_argument(
        "--lr-factor", type=float, nargs="+", default=[1.0], help="of the workers' rate in the recipe"
    )
    parser.add_argument("--codec", default="int8-block-v1")
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--mu", type=float, default=0.0)
    parser.add_argument("--recipe", default="{}", help="JSON with recipe fields to replace, on both sides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="sides at the same time")
    args = parser.parse_args()
    context = load_config(args.preset, vocab_size=5174).context_length
    data = make_data(examples=args.examples, heldout=args.heldout, seed=args.seed, max_tokens=context + 1)
    config = load_config(args.preset, vocab_size=data.vocab_size)
    changes = json.loads(args.recipe)
    theirs = TrainingRecipe.for_preset(args.preset, "intents", workers=args.workers).changed(changes)
    together = args.workers * theirs.batch_examples
    alone = TrainingRecipe.for_preset(args.preset, "intents").changed({**changes, "batch_examples": together})
    result = compare(
        data,
        config=config,
        alone=alone,
        theirs=theirs,
        steps_per_task=args.steps_per_task,
        lr_factors=args.lr_factor,
        epochs=args.epochs,
        workers=args.workers,
        codec=args.codec,
        rule_options={"eta": args.eta, "mu": args.mu},
        seed=args.seed,
        processes=args.processes,
    )
    asked = {k: getattr(args, k) for k in ("preset", "examples", "epochs", "workers", "codec", "eta", "mu")}
    print(
        json.dumps(
            {**asked, "batch_examples": theirs.batch_examples, "vocab_size": config.vocab_size, **result}
        )
    )


if __name__ == "__main__":
    main()
