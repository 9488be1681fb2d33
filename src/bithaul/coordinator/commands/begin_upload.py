"""Before the first byte of an update is read: is it this worker's lease, may it be so long, is there room?

A report that already has its receipt gets it here, so a lost answer costs one look-up, not an upload.
"""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, ledger, runs, work
from bithaul.errors import Conflict, InvalidInput, OutOfDisk, TooLarge
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import max_frame_size
from bithaul.exchange.messages import Receipt


def begin_upload(
    c: Coordinator, worker: str, *, task: int, fence: str, content_length: int
) -> Receipt | None:
    """None: send the body. Raises `Conflict` (`unknown_fence`), `TooLarge`, `InvalidInput` (too short),
    `OutOfDisk`, `Gone`."""
    with c.database.read() as connection:
        run = runs.get_run(connection)
        fleet.get_worker(connection, worker)
        known = ledger.find_report(connection, worker, task=task, fence=fence)
        if known is not None:
            return known.receipt
        if work.find_lease(connection, worker, task=task, fence=fence) is None:
            raise unknown_fence()
    payload = codec_named(run.codec).encoded_size(run.layout)
    if content_length > max_frame_size(payload):
        raise TooLarge(
            f"The update has {content_length} bytes; with {run.codec} and this layout at most "
            f"{max_frame_size(payload)} are possible."
        )
    if content_length < payload:
        raise InvalidInput(
            f"The update has {content_length} bytes, its payload alone must have {payload}.",
            code="wrong_length",
        )
    if c.blobs.free_bytes() < content_length + c.settings.disk_reserve_bytes:
        raise OutOfDisk("The coordinator's disk is nearly full; keep the update and send it later.")
    return None


def unknown_fence() -> Conflict:
    return Conflict("You hold no lease with this task and fence; ask for work again.", code="unknown_fence")
