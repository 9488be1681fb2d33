"""GET /status: public counts, no names."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import RunState


class StatusView(BaseModel):
    """`run_state` None: no run yet. Task counts by state: pending, leased, accepted, merged, failed, ..."""

    model_config = ConfigDict(frozen=True)

    run_state: RunState | None
    version: int
    progress: float
    tasks: Mapping[str, int]
    open_leases: int
    workers: Mapping[str, int]  # active, drained, gone


def status(c: Coordinator) -> StatusView:
    raise NotImplementedError
