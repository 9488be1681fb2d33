"""The run as workers see it."""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import RunDescription


def current_run(c: Coordinator) -> RunDescription:
    """Raises `NotFound` when no run was created."""
    raise NotImplementedError
