"""The run as workers see it."""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs
from bithaul.exchange.messages import RunDescription


def current_run(c: Coordinator) -> RunDescription:
    """Raises `NotFound` when no run was created."""
    with c.database.read() as connection:
        return runs.describe(
            connection, runs.get_run(connection), heartbeat_seconds=c.settings.heartbeat_seconds
        )
