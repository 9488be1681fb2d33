"""The one training step of this code base, and the loop that runs a task's examples through it.

A trainer owns a model and its AdamW moments. Loading weights keeps the moments; `reset_moments` drops them.
With one thread on the CPU, the same weights, moments, examples, progress and seed give the same bits; a GPU
may add in another order. A step whose loss or gradient is not finite changes nothing and is counted. It knows
no network and no files.
"""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bithaul.errors import InvalidInput
from bithaul.model.config import ModelConfig
from bithaul.model.device import DevicePath, choose_path, device_of, full_precision, synchronize
from bithaul.model.layout import FloatVector
from bithaul.model.products import Shape, StepPath, step_precision
from bithaul.model.transformer import BitNetForCausalLM, Dropout
from bithaul.model.vector import flatten, load_vector
from bithaul.training.batches import Batch, Example, inner_batches, pack
from bithaul.training.deviceloss import device_head_loss
from bithaul.training.loss import LossSums, head_loss
from bithaul.training.optimizer import SharedAdamW
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.schedule import rates
from bithaul.training.team import Team

_TIMING_ROWS = 512
_EVALUATION_EXAMPLES = 128


@dataclass(frozen=True)
class StepReport:
    """Where a call of `train` stands after a step; counts are since its start."""

    steps: int
    examples: int
    tokens: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """What was trained, not what was asked: the first `examples` of the slice."""

    examples: int
    tokens: int
    steps: int
    seconds: float
    loss_first: float
    loss_last: float
    loss_mean: float
    dropped_steps: int


@dataclass(frozen=True)
class EvalResult:
    loss: float  # weighted like the training loss
    plain_loss: float  # every target counted once
    tokens: int


class Trainer:
    """Trains one model on `threads` threads (set for the whole process) along `path`.

    The path is a name, a path that was built already, or None for the fastest. Each thread takes its share of
    every batch, see `team`; on a device batches stay whole.
    """

    def __init__(
        self,
        config: ModelConfig,
        recipe: TrainingRecipe,
        *,
        label_token: int | None,
        threads: int,
        path: str | StepPath | None = None,
        plain: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if threads < 1:
            raise InvalidInput(f"A trainer needs at least one thread, not {threads}.")
        torch.set_num_threads(threads)
        self.config, self.recipe = config, recipe
        self._label_token, self._clock = label_token, clock
        if not isinstance(path, StepPath):
            path = choose_path(projection_shapes(config, _TIMING_ROWS), forced=path)
        self.path: StepPath = path
        self.device = device_of(path)
        on_device = isinstance(path, DevicePath)
        self._team = Team(threads if not on_device and path.kernel.thread_safe else 1)
        self._head_loss = device_head_loss if on_device else head_loss
        self.model = BitNetForCausalLM(config, path=self.path, plain=plain)
        self.model.reset_parameters(seed=0)
        self._gradient_dtype = torch.float32 if plain else self.path.gradient_dtype
        self.reset_moments()

    def load(self, vector: FloatVector) -> None:
        """Set the latent weights; moments are kept."""
        load_vector(self.model, vector)

    def vector(self) -> FloatVector:
        """A copy of the latent weights, float32 [P]."""
        return flatten(self.model)

    def reset_moments(self) -> None:
        """Start AdamW afresh; its next steps warm up over `recipe.optimizer_warmup_steps`."""
        self._optimizer = SharedAdamW(self.model, self.recipe, self._team)
        self._warm_steps = 0

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
        """One pass over `examples` in order, in inner batches; only the last may be partial.

        The schedule runs from `progress_start` to `progress_end` over the slice. Stops after the step in
        which `soft_stop_seconds` run out or `on_step` returns False. `seed` drives dropout. Losses are NaN
        when no step was taken.
        """
        dropouts = [
            Dropout(self.recipe.dropout, seed=seed + thread, device=self.device)
            if self.recipe.dropout
            else None
            for thread in range(self._team.threads)
        ]
        started = self._clock()
        used = tokens = steps = dropped = 0
        first = last = math.nan
        sums = LossSums(0.0, 0.0, 0.0, 0)
        for group in inner_batches(examples, self.recipe.batch_examples):
            progress = progress_start + (progress_end - progress_start) * used / len(examples)
            used += len(group)
            batches = self._pack(group)
            if not batches:
                continue
            step_sums = self._step(batches, progress, dropouts[: len(batches)])
            if step_sums is None:
                dropped += 1
            else:
                steps, tokens, sums = steps + 1, tokens + sum(b.tokens for b in batches), sums + step_sums
                last = step_sums.mean
                first = last if steps == 1 else first
            seconds = self._clock() - started
            report = StepReport(steps, used, tokens, last, seconds)
            if (on_step is not None and not on_step(report)) or seconds >= soft_stop_seconds:
                break
        synchronize(self.device)  # the last update counts too
        mean = sums.mean if steps else math.nan
        return TrainResult(used, tokens, steps, self._clock() - started, first, last, mean, dropped)

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example]) -> EvalResult:
        """Loss on `examples`, weighted like the training loss, without dropout or smoothing."""
        sums = LossSums(0.0, 0.0, 0.0, 0)
        for group in inner_batches(examples, _EVALUATION_EXAMPLES):
            batches = self._pack(group)
            if batches:
                sums = sums + self._sums(batches)
        if not sums.weight:
            raise InvalidInput("There is nothing to evaluate: no example has a counted target.")
        return EvalResult(sums.mean, sums.plain_mean, sums.tokens)

    def state_dict(self) -> dict[str, Any]:
        """Moments and the warm-up counter on the CPU, for a stop and resume that equals no stop."""
        return {"moments": self._optimizer.state(), "warm_steps": self._warm_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load(state["moments"])
        self._warm_steps = int(state["warm_steps"])

    def _pack(self, group: Sequence[Example]) -> list[Batch]:
        """The group as one batch per thread, on the device; none when no example has a counted target."""
        batches = [
            pack(share, label_token=self._label_token, text_loss_weight=self.recipe.text_loss_weight)
            for share in self._team.shares(group)
        ]
        found = [batch for batch in batches if batch is not None]
        for batch in found:
            self._require_known(batch)
        if not any(bool(batch.weights.any()) for batch in found):
            return []
        return [batch.to(self.device) for batch in found]

    def _require_known(self, batch: Batch) -> None:
        """The compiled passes do not check their indices, so ids are checked before they see them."""
        for ids in (batch.input_ids, batch.targets):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.config.vocab_size:
                raise InvalidInput(
                    f"Token {low if low < 0 else high} is not in the vocabulary of {self.config.vocab_size}; "
                    "tokenize the corpus again with the tokenizer of this run."
                )

    def _loss(
        self, batch: Batch, dropout: Dropout | None, *, weight: float, smoothing: float
    ) -> tuple[torch.Tensor, LossSums]:
        """One thread's part of the loss, to be differentiated by itself, over the weight of all parts."""
        return self._head_loss(
            self.model.packed(batch.input_ids, batch.segments, dropout=dropout),
            self.model.model.embed_tokens.weight,
            batch.targets,
            batch.weights,
            total_weight=weight,
            smoothing=smoothing,
            dtype=self._gradient_dtype,
        )

    def _sums(self, batches: Sequence[Batch]) -> LossSums:
        """Of all batches, without gradients, dropout and smoothing."""
        weight = _weight_of(batches)

        @torch.no_grad()  # a setting of each thread
        def sums_of(batch: Batch) -> LossSums:
            return self._loss(batch, None, weight=weight, smoothing=0.0)[1]

        with self._precision():
            self._team.each(lambda prepare: prepare(), self.model.preparations())
            return functools.reduce(operator.add, self._team.each(sums_of, batches))

    def _step(
        self, batches: Sequence[Batch], progress: float, dropouts: Sequence[Dropout | None]
    ) -> LossSums | None:
        """One AdamW step; None when it was dropped because something was not finite.

        Each thread goes from its examples to its part of the gradient by itself; the gradient is their sum.
        """
        weight, smoothing = _weight_of(batches), self.recipe.label_smoothing
        parameters = list(self.model.parameters())

        def gradient_of(part: tuple[Batch, Dropout | None]) -> tuple[list[torch.Tensor], LossSums]:
            loss, sums = self._loss(*part, weight=weight, smoothing=smoothing)
            return list(torch.autograd.grad(loss, parameters)), sums

        self._optimizer.forget_gradients()  # before the new ones exist, not after
        with self._precision():
            self._team.each(lambda prepare: prepare(), self.model.preparations())
            found = self._team.each(gradient_of, list(zip(batches, dropouts, strict=True)))
        sums = functools.reduce(operator.add, (sums for _, sums in found))
        norm = self._optimizer.take([gradient for gradient, _ in found])
        if not (math.isfinite(norm) and math.isfinite(sums.weighted)):
            return None
        lr, decay = self._rates(progress)
        self._optimizer.step(lr=lr, weight_decay=decay, shrink=min(1.0, self.recipe.clip / max(norm, 1e-30)))
        return sums

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with full_precision(), step_precision(self._gradient_dtype):
            yield

    def _rates(self, progress: float) -> tuple[float, float]:
        """Learning rate and weight decay of the next step of these moments."""
        lr, decay = rates(progress, self.recipe)
        self._warm_steps += 1
        warmup = self.recipe.optimizer_warmup_steps
        return lr * min(1.0, self._warm_steps / warmup if warmup else 1.0), decay


def _weight_of(batches: Sequence[Batch]) -> float:
    return sum(float(batch.weights.sum(dtype=torch.float64)) for batch in batches)


def projection_shapes(config: ModelConfig, rows: int) -> list[Shape]:
    """(M, K, N) of a layer's four stacked products: q k v, output, gate and up, down."""
    h, f = config.hidden_size, config.intermediate_size
    return [(rows, h, 3 * h), (rows, h, h), (rows, h, 2 * f), (rows, f, h)]


def random_examples(config: ModelConfig, *, count: int, tokens: int, seed: int) -> list[Example]:
    """Token ids without meaning, for calibration and benchmarks: `count` examples of `tokens` tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(0, config.vocab_size, tokens, dtype=np.int32) for _ in range(count)]
