"""A model whose loss is a bowl and whose training takes no time, for rehearsals of hundreds of machines.

Training moves theta a share of the way to a fixed target, with noise that depends only on the task, so an
update says whose work it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from bithaul.corpus.build import CorpusManifest
from bithaul.corpus.shards import write_shard
from bithaul.exchange.messages import RunDescription
from bithaul.model.config import ModelConfig
from bithaul.model.layout import FloatVector, layout_of
from bithaul.simulation.subject import Body, is_lazy, spoiled
from bithaul.training.batches import Example
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import EvalResult, StepReport, TrainResult

MODEL = ModelConfig(
    vocab_size=16, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, context_length=64
)
EXAMPLES, EXAMPLE_TOKENS, BATCH = 4096, 32, 4
PARTS = 3  # pauses in a task, at which a heartbeat may be sent and a kill may strike
RATE = 0.004  # of the way to the target, for each inner step
NOISE = 0.02
LOSS_SCALE = 3.0


@dataclass(frozen=True)
class ToyPath:
    name: str = "toy"
    reason: str = "virtual time"


class ToyTrainer:
    """Implements `worker.session.LocalTrainer`."""

    path = ToyPath()

    def __init__(self, config: ModelConfig, recipe: TrainingRecipe, body: Body) -> None:
        self.config, self._recipe, self._body = config, recipe, body
        self._theta = np.zeros(layout_of(config).size, np.float32)

    def load(self, vector: FloatVector) -> None:
        self._theta = np.array(vector)

    def vector(self) -> FloatVector:
        return self._theta.copy()

    def reset_moments(self) -> None:
        """It has none."""

    def loss(self) -> float:
        return toy_loss(self._theta)

    def train(
        self,
        examples: Sequence[Example],
        *,
        progress_start: float,  # noqa: ARG002 - the protocol's signature
        progress_end: float,  # noqa: ARG002
        seed: int,
        soft_stop_seconds: float = float("inf"),
        on_step: Callable[[StepReport], bool] | None = None,
    ) -> TrainResult:
        faults = self._body.struck()
        first, began = self.loss(), self._body.now()
        batch = self._recipe.batch_examples
        size = -(-len(examples) // (PARTS * batch)) * batch  # whole batches
        done = tokens = 0
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            here = sum(len(e) - 1 for e in part)
            self._body.pause(here / self._body.speed)
            for fault in faults if start == 0 else ():
                self._body.suffer(fault)
            done, tokens = done + len(part), tokens + here
            report = StepReport(-(-done // batch), done, tokens, first, self._body.now() - began)
            wanted = on_step is None or on_step(report)
            if not wanted or report.seconds >= soft_stop_seconds:
                break
        steps = -(-done // batch)
        start_theta = self._theta
        self._move(steps // 2 if is_lazy(faults) else steps, seed)
        self._theta = spoiled(faults, start_theta, self._theta)
        last = self.loss()
        return TrainResult(
            done, tokens, steps, self._body.now() - began, first, last, (first + last) / 2, dropped_steps=0
        )

    def _move(self, steps: int, seed: int) -> None:
        share = 1.0 - (1.0 - RATE) ** steps
        noise = np.random.default_rng(seed).standard_normal(self._theta.size, dtype=np.float32)
        away = target(self._theta.size) - self._theta
        self._theta = (self._theta + np.float32(share) * (away + NOISE * noise)).astype(np.float32)

    def evaluate(self, examples: Sequence[Example]) -> EvalResult:
        loss = self.loss()
        return EvalResult(loss, loss, sum(len(e) - 1 for e in examples))


def toy_loss(theta: FloatVector) -> float:
    """Mean square distance to the target, scaled to look like a loss."""
    away = (theta - target(theta.size)).astype(np.float64)
    return float(LOSS_SCALE * np.mean(away**2) / 0.01)


@lru_cache
def target(size: int) -> FloatVector:
    """Where training leads, for a model of so many values."""
    return (np.random.default_rng(size).standard_normal(size) * 0.1).astype(np.float32)


class Toy:
    """Implements `simulation.subject.Subject`; its corpus says nothing and is written to `folder`."""

    model = MODEL
    recipe = TrainingRecipe(batch_examples=BATCH)
    probe_every = 4

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.corpus = folder
        write_corpus(folder, seed=seed, vocab_size=MODEL.vocab_size)

    def trainer(self, description: RunDescription, body: Body) -> ToyTrainer:  # noqa: ARG002 - as any subject
        return ToyTrainer(self.model, self.recipe, body)

    def loss(self, vector: FloatVector) -> float:
        return toy_loss(vector)

    def heldout(self, vector: FloatVector) -> None:  # noqa: ARG002 - as any subject
        return None


def write_corpus(folder: Path, *, seed: int, vocab_size: int) -> None:
    """One shard of equal examples and a probe: what they say does not matter to a toy."""
    folder.mkdir(parents=True)
    example = [(seed + i) % vocab_size for i in range(EXAMPLE_TOKENS + 1)]
    shard = write_shard(folder, "train-00000", [example] * EXAMPLES)
    probe = write_shard(folder, "probe-00000", [example] * 4)
    CorpusManifest(
        kind="intents",
        description="rehearsal",
        generator_version=None,
        seed=seed,
        tokenizer_sha256="0" * 64,
        vocab_size=vocab_size,
        max_tokens=EXAMPLE_TOKENS + 1,
        shards=[shard],
        heldout=[],
        probe=probe,
        train_tokens=shard.tokens,
        heldout_tokens=0,
        left_out=0,
        unknown_share=0.0,
        heldout_unknown_share=0.0,
    ).save(folder)
