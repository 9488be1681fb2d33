"""Judge a complete, fsynced update and answer with a receipt that never changes.

Ownership first, then the gates of exchange.md §9, then one transaction: ledger row, task, returned
positions, lease, worker, receipt. Nothing is acknowledged before it is durable; the merger is woken after.
"""

from __future__ import annotations

from bithaul.coordinator.blobs.store import UploadedFile
from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import Receipt


def submit_gradient(c: Coordinator, worker: str, *, task: int, fence: str, upload: UploadedFile) -> Receipt:
    """The receipt; its verdict `rejected` is a 422 at the door, all others a 200. The upload is consumed.

    Raises `Conflict` with code `unknown_fence` or `base_from_future`, `OutOfDisk`, `Gone`.
    """
    raise NotImplementedError
