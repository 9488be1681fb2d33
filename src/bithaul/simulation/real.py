"""A real model in a rehearsal: it computes every step, only the time that a step takes is virtual.

So a fleet of any speeds trains on one computer, with every fault, and what a merge rule does to the loss can
be measured. One thread: the same seed gives the same bits. It takes as long as training alone does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bithaul.corpus.build import CorpusManifest
from bithaul.corpus.shards import Shard
from bithaul.corpus.tokenizer import SPECIAL
from bithaul.errors import InvalidInput
from bithaul.exchange.messages import RunDescription
from bithaul.model.config import ModelConfig, load_config
from bithaul.model.layout import FloatVector
from bithaul.model.products import StepPath
from bithaul.simulation.scenario import HOUR, Scenario
from bithaul.simulation.subject import Body, is_lazy, spoiled
from bithaul.training.batches import Example
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import EvalResult, StepReport, Trainer, TrainResult

PROBED = 64  # examples for the loss of each version
UP, DOWN = 125_000.0, 1_250_000.0  # bytes per second of the slowest line: 1 and 10 Mbit/s


class RealTrainer:
    """Implements `worker.session.LocalTrainer`."""

    def __init__(self, trainer: Trainer, body: Body) -> None:
        self._trainer, self._body = trainer, body

    @property
    def config(self) -> ModelConfig:
        return self._trainer.config

    @property
    def path(self) -> StepPath:
        return self._trainer.path

    def load(self, vector: FloatVector) -> None:
        self._trainer.load(vector)

    def vector(self) -> FloatVector:
        return self._trainer.vector()

    def reset_moments(self) -> None:
        self._trainer.reset_moments()

    def evaluate(self, examples: Sequence[Example]) -> EvalResult:
        return self._trainer.evaluate(examples)

    def train(
        self,
        examples: Sequence[Example],
        *,
        progress_start: float,
        progress_end: float,
        seed: int,
        soft_stop_seconds: float = math.inf,
        on_step: Callable[[StepReport], bool] | None = None,
    ) -> TrainResult:
        """As `Trainer.train`, in virtual seconds; what strikes the machine does so after the first step."""
        body, faults = self._body, self._body.struck()
        start, began, counted = self.vector(), body.now(), 0

        def go_on(report: StepReport) -> bool:
            nonlocal counted
            body.pause((report.tokens - counted) / body.speed)
            for fault in faults if counted == 0 else ():
                body.suffer(fault)
            counted = report.tokens
            report = replace(report, seconds=body.now() - began)
            wanted = on_step is None or on_step(report)
            return wanted and report.seconds < soft_stop_seconds

        lazy, batch = is_lazy(faults), self._trainer.recipe.batch_examples
        done = examples[: max(1, len(examples) // batch // 2) * batch] if lazy else examples
        end = progress_start + (progress_end - progress_start) * len(done) / len(examples)
        result = self._trainer.train(
            done, progress_start=progress_start, progress_end=end, seed=seed, on_step=go_on
        )
        self._trainer.load(spoiled(faults, start, self.vector()))
        if lazy:
            told = examples[: 2 * result.examples]
            steps, tokens = -(-len(told) // batch), sum(len(e) - 1 for e in told)
            result = replace(result, examples=len(told), steps=steps, tokens=tokens)
        return replace(result, seconds=body.now() - began)


class Real:
    """Implements `simulation.subject.Subject`: a preset on a built corpus, with the recipe for `workers`."""

    probe_every = 0  # `loss` looks at every version; the fleet need not

    def __init__(
        self, corpus: Path, *, preset: str, workers: int, changes: Mapping[str, Any] | None = None
    ) -> None:
        self.corpus = corpus
        self._manifest = manifest = CorpusManifest.load(corpus)
        self.model = load_config(preset, vocab_size=manifest.vocab_size)
        recipe = TrainingRecipe.for_preset(preset, manifest.kind, workers=workers)
        self.recipe = recipe.changed(changes or {})
        self._label = SPECIAL.index("[INTENT]") if manifest.kind == "intents" else None
        self._judge = self.alone()
        if manifest.probe is None:
            raise InvalidInput(f"The corpus {corpus} has no held-out examples to measure a loss on.")
        self._probe = self._read([manifest.probe.id])[:PROBED]

    @property
    def batch_tokens(self) -> float:
        """Targets of an inner batch, in the mean."""
        shards = self._manifest.shards
        examples = sum(s.examples for s in shards)
        return (sum(s.tokens for s in shards) / examples - 1) * self.recipe.batch_examples

    def trainer(self, description: RunDescription, body: Body) -> RealTrainer:  # noqa: ARG002
        return RealTrainer(self.alone(), body)

    def loss(self, vector: FloatVector) -> float:
        self._judge.load(vector)
        return self._judge.evaluate(self._probe).loss

    def heldout(self, vector: FloatVector) -> float:
        self._judge.load(vector)
        return self._judge.evaluate(self._read([s.id for s in self._manifest.heldout])).loss

    def planned(self, scenario: Scenario, *, tokens: float, steps: int) -> Scenario:
        """`scenario` for real updates: a machine of the middle takes `steps` inner steps a task, the lines
        are those of homes, and the hours those that `tokens` take if nothing is lost."""
        if tokens < self.batch_tokens:
            raise InvalidInput(f"Train at least one batch, {self.batch_tokens:.0f} tokens, not {tokens:g}.")
        speed = steps * self.batch_tokens / scenario.task_seconds
        return replace(
            scenario,
            slowest=speed / math.sqrt(scenario.spread),
            up=UP,
            down=DOWN,
            budget_tokens=tokens,
            hours=tokens / (speed * scenario.workers) / HOUR,
        )

    def alone(self) -> Trainer:
        """A trainer without a machine around it."""
        path = self._judge.path if hasattr(self, "_judge") else None  # chosen once: it is timed
        return Trainer(self.model, self.recipe, label_token=self._label, threads=1, path=path)

    def _read(self, names: Sequence[str]) -> list[Example]:
        shards = (Shard.open(self.corpus / f"{name}.bin", self.corpus / f"{name}.idx") for name in names)
        return [example for shard in shards for example in shard.slice(0, len(shard))]
