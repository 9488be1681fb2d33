"""GET /work: lease one task to a worker, or say when to ask again.

An open lease on a usable base is answered again with the same fence, so asking twice is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass

from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import RunState, TaskMessage


@dataclass(frozen=True)
class Claim:
    """`task` None: ask again after `retry_after` seconds; `state` says whether there will be more work."""

    task: TaskMessage | None
    retry_after: float
    state: RunState


def claim_task(c: Coordinator, worker: str) -> Claim:
    """Raises `Gone` for a worker that is not registered."""
    raise NotImplementedError
