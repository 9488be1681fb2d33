"""Why many workers end behind data parallel on a short budget: one arm after the other, at equal tokens.

The parts of `benchmarks/convergence.py` (real trainer, codec with error feedback, merge rule; everybody
reports in time, so `buffered_nesterov` would be `sync` to the bit) with other outer steps, tasks and recipes.
An arm is JSON: `workers`, `steps` of a task (0: data parallel, the batches of all workers in one process),
`eta`, `mu`, `codec`, and `recipe` with fields that replace those of the recipe for so many workers. Besides
the held-out loss it tells how alike the updates of a round are: their mean cosine, and what share of the
4,096 largest values two of them have in common, which the gate against copies looks at. Example:

    python benchmarks/studies/outer_step.py --tokens 3e5 --arm '{"workers": 8, "steps": 6, "eta": 1.5}'

Each arm's line is printed when it is done, the last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import convergence as parts
from bithaul.exchange.codecs import codec_named, decode
from bithaul.exchange.pseudo_gradient import encode_with_feedback, pseudo_gradient
from bithaul.model.config import ModelConfig, load_config
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of
from bithaul.rounds.facts import Contribution, Past
from bithaul.rounds.gates import largest
from bithaul.rounds.merging import step
from bithaul.rounds.rules import rule_named
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer


@dataclass(frozen=True)
class Arm:
    workers: int = 8
    steps: int = 6  # of a task; 0: one process
    eta: float = 1.0
    mu: float = 0.0
    codec: str = "int8-block-v1"
    recipe: dict[str, object] = field(default_factory=dict)


@dataclass
class Alike:
    """Of the updates of each round: cosines and overlaps of all pairs."""

    cosines: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)

    def look(self, updates: list[np.ndarray]) -> None:
        norms = [float(np.linalg.norm(u)) for u in updates]
        places = [largest(u) for u in updates]
        for i, j in itertools.combinations(range(len(updates)), 2):
            self.cosines.append(float(updates[i] @ updates[j]) / max(norms[i] * norms[j], 1e-30))
            self.overlaps.append(np.intersect1d(places[i], places[j]).size / places[i].size)

    def told(self) -> dict[str, float]:
        if not self.cosines:
            return {}
        return {
            "cosine_mean": round(float(np.mean(self.cosines)), 4),
            "overlap_mean": round(float(np.mean(self.overlaps)), 4),
            "overlap_most": round(max(self.overlaps), 4),
            "pairs": len(self.overlaps),
            "pairs_above_0.4": int(sum(o > 0.4 for o in self.overlaps)),
        }


def train(arm: Arm, data: parts.Data, config: ModelConfig, *, preset: str, tokens: float, seed: int) -> dict:
    recipe = TrainingRecipe.for_preset(preset, "intents", workers=max(1, arm.workers))
    mean = np.mean([len(e) - 1 for e in data.train])
    together = recipe.batch_examples * arm.workers
    steps = round(tokens / mean / together)
    started = time.perf_counter()
    if arm.steps == 0:
        alone = TrainingRecipe.for_preset(preset, "intents").changed(
            {"batch_examples": together, **arm.recipe}
        )
        trainer = Trainer(config, alone, label_token=parts.LABEL_TOKEN, threads=1)
        trainer.load(initial_vector(config, seed=seed))
        given = data.slice(0, steps * together, seed=seed)
        result = trainer.train(given, progress_start=0.0, progress_end=1.0, seed=seed)
        told: dict[str, object] = {"tokens": result.tokens, "rounds": 0}
    else:
        trainer, told = together_in_rounds(arm, recipe.changed(arm.recipe), data, config, steps, seed)
    told |= {
        "inner_steps": steps,
        "train_loss": round(trainer.evaluate(data.probe).loss, 4),
        "heldout_loss": round(trainer.evaluate(data.heldout).loss, 4),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return told


def together_in_rounds(
    arm: Arm, recipe: TrainingRecipe, data: parts.Data, config: ModelConfig, steps: int, seed: int
) -> tuple[Trainer, dict[str, object]]:
    layout, codec = layout_of(config), codec_named(arm.codec)
    rule = rule_named("sync", {"eta": arm.eta, "mu": arm.mu})
    path = Trainer(config, recipe, label_token=parts.LABEL_TOKEN, threads=1).path
    trainers = [
        Trainer(config, recipe, label_token=parts.LABEL_TOKEN, threads=1, path=path)
        for _ in range(arm.workers)
    ]
    residuals: list[np.ndarray | None] = [None] * arm.workers
    theta, momentum = initial_vector(config, seed=seed), None
    batch, done, tokens, rounds, alike = recipe.batch_examples, 0, 0, 0, Alike()
    while done < steps:
        here = min(arm.steps, steps - done)
        updates, weights = [], []
        for number, trainer in enumerate(trainers):
            trainer.load(theta)
            result = trainer.train(
                data.slice((done * arm.workers + number * here) * batch, here * batch, seed=seed),
                progress_start=done / steps,
                progress_end=(done + here) / steps,
                seed=rounds * arm.workers + number,
            )
            u = pseudo_gradient(theta, trainer.vector(), exact=codec.lossless)
            payload, residuals[number] = encode_with_feedback(codec, u, residuals[number], layout)
            updates.append(decode(codec, payload, layout))
            weights.append(result.tokens)
        if rounds % 4 == 1:
            alike.look(updates)
        taken = [Contribution(seq, str(seq), w, 0, 0.0) for seq, w in enumerate(weights)]
        theta, momentum, _ = step(rule.plan(taken, past=Past()), theta, momentum, updates)
        done, tokens, rounds = done + here, tokens + sum(weights), rounds + 1
    trainers[0].load(theta)
    return trainers[0], {"tokens": tokens, "rounds": rounds, **alike.told()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--tokens", type=float, default=3e5)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--heldout", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", action="append", required=True)
    args = parser.parse_args()
    arms = [Arm(**json.loads(text)) for text in args.arm]
    context = load_config(args.preset, vocab_size=5174).context_length
    data = parts.make_data(
        examples=args.examples, heldout=args.heldout, seed=args.seed, max_tokens=context + 1
    )
    config = load_config(args.preset, vocab_size=data.vocab_size)
    rows = []
    for arm in arms:
        told = train(arm, data, config, preset=args.preset, tokens=args.tokens, seed=args.seed)
        rows.append({**{k: v for k, v in vars(arm).items() if k != "recipe"}, **arm.recipe, **told})
        print(json.dumps(rows[-1]), flush=True)
    asked = {key: getattr(args, key) for key in ("preset", "tokens", "examples", "seed")}
    print(json.dumps({**asked, "date": datetime.now(UTC).date().isoformat(), "rows": rows}))


if __name__ == "__main__":
    main()
