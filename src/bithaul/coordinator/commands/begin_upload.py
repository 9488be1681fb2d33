"""Before the first byte of an update is read: is it this worker's lease, may it be so long, is there room?

A report that already has its receipt gets it here, so a lost answer costs one look-up, not an upload.
"""

from __future__ import annotations

from bithaul.coordinator.blobs.uploads import Upload, UploadInfo
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, ledger, runs, work
from bithaul.coordinator.database.runs import RunRow
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
    _check_length(run, content_length)
    _check_room(c, content_length)
    return None


def resume_upload(
    c: Coordinator, worker: str, *, task: int, fence: str, length: int, sha256: str | None
) -> Receipt | Upload:
    """The upload for this lease, begun now or before; or the receipt. Raises as `begin_upload`.

    One of another length or hash is another update: it takes the place of the one before.
    """
    known = c.uploads.of_lease(worker, task=task, fence=fence)
    if known is not None and (known.info.length, known.info.sha256) == (length, sha256):
        with c.database.read() as connection:
            fleet.get_worker(connection, worker)
            report = ledger.find_report(connection, worker, task=task, fence=fence)
        return report.receipt if report is not None else known
    receipt = begin_upload(c, worker, task=task, fence=fence, content_length=length)
    if known is not None:
        c.uploads.delete(known.id, worker=worker)
    if receipt is not None:
        return receipt
    info = UploadInfo(
        worker=worker, task=task, fence=fence, length=length, sha256=sha256, created=c.clock.now()
    )
    return c.uploads.create(c.ids.nonce(), info)


def largest_update(c: Coordinator) -> int | None:
    """Bytes of the longest frame the run accepts; None without a run."""
    with c.database.read() as connection:
        run = runs.find_run(connection)
    return None if run is None else max_frame_size(codec_named(run.codec).encoded_size(run.layout))


def _check_length(run: RunRow, content_length: int) -> None:
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


def _check_room(c: Coordinator, content_length: int) -> None:
    expected = content_length + c.uploads.pending_bytes()
    if c.blobs.free_bytes() < expected + c.settings.disk_reserve_bytes:
        raise OutOfDisk("The coordinator's disk is nearly full; keep the update and send it later.")


def unknown_fence() -> Conflict:
    return Conflict("You hold no lease with this task and fence; ask for work again.", code="unknown_fence")
