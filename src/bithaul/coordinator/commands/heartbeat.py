"""POST /heartbeat: progress renews the lease, an outcome ends it, and the answer carries drain and pause.

A heartbeat revives a worker marked gone.
"""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import HeartbeatRequest, HeartbeatResponse


def heartbeat(c: Coordinator, worker: str, beat: HeartbeatRequest) -> HeartbeatResponse:
    """Raises `Gone` for a worker that is not registered."""
    raise NotImplementedError
