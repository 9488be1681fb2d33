"""How fast this machine trains this model, measured with the real step on tokens without meaning.

The figure a worker registers with: tokens per second are targets per second, the median over steps after the
first. At least two steps are run, however long they take.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from bithaul.model.config import ModelConfig
from bithaul.model.device import peak_bytes
from bithaul.model.products import StepPath
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import StepReport, Trainer, random_examples

_MOST_STEPS = 200


@dataclass(frozen=True)
class Calibration:
    tokens_per_second: float  # median over steps
    spread: float  # half the distance between the quartiles, in tokens per second
    path: str
    reason: str
    memory_bytes: int  # after the steps: resident memory, or the most that tensors took on a GPU


def calibrate(
    config: ModelConfig,
    recipe: TrainingRecipe,
    *,
    threads: int,
    seconds: float = 5.0,
    example_tokens: int = 32,
    path: str | StepPath | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Train a throw-away model for about `seconds` on examples of `example_tokens` tokens."""
    trainer = Trainer(config, recipe, label_token=None, threads=threads, path=path, clock=clock)
    length = min(example_tokens, config.context_length) + 1
    batch = random_examples(config, count=recipe.batch_examples, tokens=length, seed=0)
    reports: list[StepReport] = []

    def seen(report: StepReport) -> bool:
        reports.append(report)
        return len(reports) < 2 or report.seconds < seconds

    trainer.train(batch * _MOST_STEPS, progress_start=0.0, progress_end=0.0, seed=0, on_step=seen)
    rates = [
        (after.tokens - before.tokens) / max(after.seconds - before.seconds, 1e-9)
        for before, after in itertools.pairwise(reports)
    ]
    quartiles = statistics.quantiles(rates, n=4) if len(rates) > 1 else [rates[0]] * 3
    return Calibration(
        tokens_per_second=statistics.median(rates),
        spread=(quartiles[2] - quartiles[0]) / 2,
        path=trainer.path.name,
        reason=trainer.path.reason,
        memory_bytes=peak_bytes(trainer.device) or psutil.Process().memory_info().rss,
    )
