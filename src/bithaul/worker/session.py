"""One run as this worker sees it: checked against the coordinator's description and ready to train.

Lives across tasks, so that optimizer moments are kept and nothing is built twice. Made anew only when the
coordinator describes another run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from bithaul.errors import LayoutMismatch
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.messages import RunDescription
from bithaul.exchange.pieces import Codec
from bithaul.exchange.weights import WeightFormat, format_named
from bithaul.model.config import ModelConfig
from bithaul.model.layout import FloatVector, Layout, layout_of
from bithaul.training.batches import Example
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import EvalResult, StepReport, Trainer, TrainResult


class LocalTrainer(Protocol):
    """What a task needs of `training.trainer.Trainer`."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def path(self) -> ChosenPath: ...
    def load(self, vector: FloatVector) -> None: ...
    def vector(self) -> FloatVector: ...
    def reset_moments(self) -> None: ...
    def train(
        self,
        examples: Sequence[Example],
        *,
        progress_start: float,
        progress_end: float,
        seed: int,
        soft_stop_seconds: float = ...,
        on_step: Callable[[StepReport], bool] | None = ...,
    ) -> TrainResult: ...
    def evaluate(self, examples: Sequence[Example]) -> EvalResult: ...


class ChosenPath(Protocol):
    """How a step is computed, and why so."""

    @property
    def name(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Session:
    description: RunDescription
    config: ModelConfig
    recipe: TrainingRecipe
    layout: Layout
    codec: Codec
    trainer: LocalTrainer

    @property
    def weight_format(self) -> WeightFormat:
        return format_named(self.description.weight_format)

    def same_run(self, other: RunDescription) -> bool:
        """Whether everything that shapes a task is unchanged; state and budget may differ."""
        mine = self.description.model_dump(exclude={"state", "heartbeat_seconds"})
        return mine == other.model_dump(exclude={"state", "heartbeat_seconds"})


def open_session(description: RunDescription, *, threads: int, path: str | None = None) -> Session:
    """Build the trainer of a run, along `path` (None: the fastest of this machine).

    Raises `LayoutMismatch` when this version of bithaul lays the model out differently or does not know
    its fields, `UnknownName` for a codec, weight format or path it does not know, `InvalidConfig` for a path
    that this machine cannot run.
    """
    try:
        config = ModelConfig.model_validate(description.model)
        recipe = TrainingRecipe.model_validate(description.recipe)
    except ValidationError as error:
        raise LayoutMismatch(
            "This worker does not understand the run's model or recipe; install the coordinator's version of "
            f"bithaul ({error.error_count()} problems, first: {error.errors()[0]['msg']})."
        ) from error
    layout = layout_of(config)
    if layout.hash != description.layout_hash:
        raise LayoutMismatch(
            f"The run's parameter layout {description.layout_hash[:12]} is not the one this worker builds "
            f"({layout.hash[:12]}); install the coordinator's version of bithaul."
        )
    format_named(description.weight_format)
    codec = codec_named(description.codec)
    trainer = Trainer(config, recipe, label_token=description.label_token, threads=threads, path=path)
    return Session(description, config, recipe, layout, codec, trainer)
