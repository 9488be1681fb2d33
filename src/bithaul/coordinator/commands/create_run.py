"""Create the run: import its corpus into the blob store, write version 1 durably, then the rows.

A coordinator holds one run. Asking again with the same name is a `Conflict`; nothing half-made stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.runs import RunRow
from bithaul.model.config import ModelConfig


@dataclass(frozen=True)
class CreateRun:
    """`recipe` is a TrainingRecipe as JSON. One of the budgets may be None, not both."""

    run: str
    model: ModelConfig
    recipe: Mapping[str, object]
    corpus_dir: Path
    budget_tokens: float | None = None
    budget_seconds: float | None = None
    merge_rule: str = "sync"
    merge_options: Mapping[str, float] = field(default_factory=dict)
    task_seconds: float = 8.0
    codec: str = "int8-block-v1"
    seed: int = 0
    probe_every: int = 2  # measure every k-th version on the held-out probe
    max_update_norm: float | None = None  # updates with a larger L2 norm are refused


def create_run(c: Coordinator, wanted: CreateRun) -> RunRow:
    raise NotImplementedError
