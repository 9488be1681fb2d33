"""A trainer whose time is virtual and whose loss is a bowl: the worker around it is the real one.

Training moves theta a share of the way to a fixed target, with noise that depends only on the task, so an
update says whose work it was. It implements `worker.session.LocalTrainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bithaul.errors import LayoutMismatch
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.messages import RunDescription
from bithaul.model.config import ModelConfig
from bithaul.model.layout import FloatVector, layout_of
from bithaul.simulation.faults import Fault, Kind
from bithaul.training.batches import Example
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import EvalResult, StepReport, TrainResult
from bithaul.worker.session import Session

PARTS = 3  # pauses in a task, at which a heartbeat may be sent and a kill may strike
RATE = 0.004  # of the way to the target, for each inner step
NOISE = 0.02
LOSS_SCALE = 3.0


@dataclass(frozen=True)
class ToyPath:
    name: str = "toy"
    reason: str = "virtual time"


class ToyTrainer:
    """`speed` is in tokens per second; `pause` lets time pass; `struck` says what goes wrong in this task."""

    path = ToyPath()

    def __init__(
        self,
        config: ModelConfig,
        recipe: TrainingRecipe,
        *,
        speed: float,
        now: Callable[[], float],
        pause: Callable[[float], None],
        struck: Callable[[], Sequence[Fault]],
        suffer: Callable[[Fault], None],
    ) -> None:
        self.config, self._recipe = config, recipe
        self._speed, self._now, self._pause = speed, now, pause
        self._struck, self._suffer = struck, suffer
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
        faults = self._struck()
        first, began = self.loss(), self._now()
        batch = self._recipe.batch_examples
        size = -(-len(examples) // (PARTS * batch)) * batch  # whole batches
        done = tokens = 0
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            here = sum(len(e) - 1 for e in part)
            self._pause(here / self._speed)
            for fault in faults if start == 0 else ():
                self._suffer(fault)
            done, tokens = done + len(part), tokens + here
            report = StepReport(-(-done // batch), done, tokens, first, self._now() - began)
            wanted = on_step is None or on_step(report)
            if not wanted or report.seconds >= soft_stop_seconds:
                break
        steps = -(-done // batch)
        start_theta = self._theta
        self._move(steps, seed)
        for fault in faults:
            if fault.kind is Kind.SIGN_FLIP:
                self._theta = start_theta + np.float32(fault.value) * (start_theta - self._theta)
        last = self.loss()
        return TrainResult(
            done, tokens, steps, self._now() - began, first, last, (first + last) / 2, dropped_steps=0
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


def toy_session(description: RunDescription, trainer: Callable[..., ToyTrainer]) -> Session:
    """What `worker.session.open_session` builds, around a toy."""
    config = ModelConfig.model_validate(description.model)
    recipe = TrainingRecipe.model_validate(description.recipe)
    layout = layout_of(config)
    if layout.hash != description.layout_hash:
        raise LayoutMismatch("the rehearsal's layout changed under it")
    return Session(
        description, config, recipe, layout, codec_named(description.codec), trainer(config, recipe)
    )
