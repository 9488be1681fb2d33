"""Before the first byte of an update is read: is it this worker's lease, may it be so long, is there room?

A report that already has its receipt gets it here, so a lost answer costs one look-up, not an upload.
"""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import Receipt


def begin_upload(c: Coordinator, worker: str, *, task: int, fence: str, content_length: int) -> Receipt | None:
    """None: send the body. Raises `Conflict` (`unknown_fence`), `TooLarge`, `InvalidInput` (too short),
    `OutOfDisk`, `Gone`."""
    raise NotImplementedError
