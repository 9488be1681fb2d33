"""How training goes, for `bithaul up`, the dashboard and scripts (GET /api/progress)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import RunState


class SeriesPoint(BaseModel):
    """One version. `tokens` counts all training up to it; losses are nats per counted token."""

    model_config = ConfigDict(frozen=True)

    version: int
    tokens: int
    time: float
    train_loss: float | None
    heldout_loss: float | None
    contributors: int


class WorkerProgress(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    state: str  # active, drained, gone
    activity: str
    tokens_per_second: float  # measured over finished tasks
    accepted: int  # accepted updates
    tokens: int  # in accepted updates
    share: float  # of all accepted updates
    last_seen: float


class ProgressView(BaseModel):
    model_config = ConfigDict(frozen=True)

    run: str
    state: RunState
    progress: float  # 0..1, share of the budget
    budget_tokens: float | None
    budget_seconds: float | None
    tokens: int  # in merged updates
    seconds: float  # active time
    version: int  # newest
    versions: int  # made so far, the first included
    tokens_per_second: float  # whole fleet, recent
    eta_seconds: float | None
    tasks: Mapping[str, int]
    open_leases: int
    receipts: Mapping[str, int]  # by verdict
    rejected: Mapping[str, int]  # by code
    workers: list[WorkerProgress]
    series: list[SeriesPoint]


def progress(c: Coordinator) -> ProgressView:
    """Raises `NotFound` when no run was created."""
    raise NotImplementedError
