"""What the machines of a rehearsal train: a toy in no time, or a real model on real text (`toy`, `real`).

The coordinator and the worker around it are the real ones in both; time is virtual in both.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bithaul.errors import LayoutMismatch
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.messages import RunDescription
from bithaul.model.config import ModelConfig
from bithaul.model.layout import FloatVector, layout_of
from bithaul.simulation.faults import Fault, Kind
from bithaul.training.recipe import TrainingRecipe
from bithaul.worker.session import LocalTrainer, Session


@dataclass(frozen=True)
class Body:
    """The machine that a trainer runs on. `speed` in tokens per second of virtual time; `pause` lets it pass;
    `struck` says what goes wrong in the task that begins, `suffer` lets it happen."""

    speed: float
    now: Callable[[], float]
    pause: Callable[[float], None]
    struck: Callable[[], Sequence[Fault]]
    suffer: Callable[[Fault], None]


class Subject(Protocol):
    """A model, its data, and how a machine trains it."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def recipe(self) -> TrainingRecipe: ...
    @property
    def probe_every(self) -> int: ...
    @property
    def corpus(self) -> Path:
        """The folder of the corpus, which a coordinator imports."""
        ...

    def trainer(self, description: RunDescription, body: Body) -> LocalTrainer: ...
    def loss(self, vector: FloatVector) -> float:
        """Of a version, for the picture: low is good."""
        ...

    def heldout(self, vector: FloatVector) -> float | None:
        """On the whole held-out split, where there is one."""
        ...


def session_of(subject: Subject, description: RunDescription, body: Body) -> Session:
    """What `worker.session.open_session` builds, around a trainer whose time is virtual."""
    config = ModelConfig.model_validate(description.model)
    recipe = TrainingRecipe.model_validate(description.recipe)
    layout = layout_of(config)
    if layout.hash != description.layout_hash:
        raise LayoutMismatch("the rehearsal's layout changed under it")
    trainer = subject.trainer(description, body)
    return Session(description, config, recipe, layout, codec_named(description.codec), trainer)


def spoiled(faults: Sequence[Fault], start: FloatVector, end: FloatVector) -> FloatVector:
    """Where training ended; with a `SIGN_FLIP` among `faults` as far on the other side as it says, with
    `NOISE` as far away in a direction that means nothing.
    """
    for fault in faults:
        if fault.kind is Kind.SIGN_FLIP:
            end = start + type(start[0])(fault.value) * (start - end)
        if fault.kind is Kind.NOISE:
            way = np.random.default_rng(zlib.crc32(end.tobytes())).standard_normal(end.size, np.float32)
            end = start + way * np.float32(np.linalg.norm(end - start) / np.linalg.norm(way))
    return end


def is_lazy(faults: Sequence[Fault]) -> bool:
    """Whether half of the steps are done and all of them told."""
    return any(fault.kind is Kind.HALF for fault in faults)
