"""Register a worker: once to learn the run, again with its layout hash and what its machine can do.

Idempotent per client. Registering again never undoes a drain and revives a worker that was gone.
"""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import RegisterRequest, RegisterResponse


def register_worker(c: Coordinator, worker: str, request: RegisterRequest) -> RegisterResponse:
    """Raises `LayoutMismatch`, `UnknownName` (no common codec or weight format), `NotFound` (no run)."""
    raise NotImplementedError
