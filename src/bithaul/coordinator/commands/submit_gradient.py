"""Judge a complete, fsynced update and answer with a receipt that never changes.

Ownership first, then the gates, then one transaction: ledger row, task, returned positions, lease, worker,
receipt. Nothing is acknowledged before it is durable; the merger is woken after. See exchange.md §3.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from bithaul.coordinator.blobs.store import UploadedFile
from bithaul.coordinator.commands.begin_upload import unknown_fence
from bithaul.coordinator.commands.gates import Refused, judge
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, ledger, runs, versions, work
from bithaul.coordinator.database.ledger import ReportRow
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.work import LeaseRow, TaskRow
from bithaul.errors import BithaulError, Conflict
from bithaul.exchange.frame import read_header
from bithaul.exchange.messages import Receipt, ReportHeader, Verdict
from bithaul.rounds import positions
from bithaul.rounds.leases import Ending, LeaseState, TaskState, rest_seconds
from bithaul.rounds.sizing import next_speed

LIVE = (TaskState.PENDING, TaskState.LEASED)


@dataclass(frozen=True)
class Judgement:
    """What will be written. `header` None: the frame could not be read."""

    verdict: Verdict
    code: str
    reason: str
    header: ReportHeader | None
    norm: float
    blob_sha256: str | None


def submit_gradient(c: Coordinator, worker: str, *, task: int, fence: str, upload: UploadedFile) -> Receipt:
    """The receipt; its verdict `rejected` is a 422 at the door, all others a 200. The upload is consumed.

    Raises `Conflict` with code `unknown_fence` or `base_from_future`, `OutOfDisk`, `Gone`.
    """
    try:
        return _submit(c, worker, task=task, fence=fence, upload=upload)
    finally:
        upload.path.unlink(missing_ok=True)  # gone already when it became a blob


def _submit(c: Coordinator, worker: str, *, task: int, fence: str, upload: UploadedFile) -> Receipt:
    with c.database.read() as connection:
        run = runs.get_run(connection)
        fleet.get_worker(connection, worker)
        known = ledger.find_report(connection, worker, task=task, fence=fence)
        if known is not None:
            return known.receipt
        lease = work.find_lease(connection, worker, task=task, fence=fence)
        if lease is None:
            raise unknown_fence()
        row = work.get_task(connection, task)
        newest = versions.newest_version(connection, run.id).version
    judgement = _judge(run, lease, row, upload, newest=newest)
    c.crash_points.hit("submit.gated")
    if judgement.verdict is Verdict.ACCEPTED:
        c.blobs.adopt(upload)
        c.crash_points.hit("submit.adopted")
    with c.database.write() as connection:
        receipt = _record(c, connection, judgement, worker=worker, task=task, fence=fence)
        c.crash_points.hit("submit.recorded")
    c.crash_points.hit("submit.committed")
    c.events.merge.set()
    return receipt


def _judge(run: RunRow, lease: LeaseRow, task: TaskRow, upload: UploadedFile, *, newest: int) -> Judgement:
    if task.state not in LIVE:
        return _unmerged(*_too_late(task), upload)
    if lease.base_version > newest:
        raise Conflict(
            f"The update starts from version {lease.base_version}, the newest here is {newest}: the "
            "coordinator was restored from a backup; ask for work again.",
            code="base_from_future",
        )
    if newest - lease.base_version > run.rule.max_staleness:
        return _unmerged(*_stale(run, newest - lease.base_version), upload)
    verdict = judge(run, lease, upload.path, slice_examples=task.examples)
    if isinstance(verdict, Refused):
        if verdict.header is not None and verdict.header.base_version > newest:
            raise Conflict(
                f"The update starts from version {verdict.header.base_version}, the newest here is {newest}; "
                "ask for work again.",
                code="base_from_future",
            )
        return Judgement(Verdict.REJECTED, verdict.code, verdict.reason, verdict.header, 0.0, None)
    return Judgement(Verdict.ACCEPTED, "", "", verdict.header, verdict.norm, upload.sha256)


def _too_late(task: TaskRow) -> tuple[Verdict, str, str]:
    if task.state in (TaskState.ACCEPTED, TaskState.MERGED):
        return Verdict.TOO_LATE, "too_late", "Another report of this task was accepted first."
    return Verdict.TOO_LATE, "task_closed", f"The task is {task.state}; its slice was given up."


def _stale(run: RunRow, staleness: int) -> tuple[Verdict, str, str]:
    limit = run.rule.max_staleness
    return Verdict.STALE, "stale", f"The base is {staleness} versions old, at most {limit} are merged."


def _unmerged(verdict: Verdict, code: str, reason: str, upload: UploadedFile) -> Judgement:
    """Of a report that is not merged only the header matters, for credit as compute."""
    header = None
    try:
        with upload.path.open("rb") as file:
            header = read_header(file)
    except BithaulError:
        pass  # not even a header: nothing to credit
    return Judgement(verdict, code, reason, header, 0.0, None)


def _record(
    c: Coordinator, connection: Connection, judgement: Judgement, *, worker: str, task: int, fence: str
) -> Receipt:
    """The one transaction. Looks at everything again: another report may have come first."""
    now = c.clock.now()
    known = ledger.find_report(connection, worker, task=task, fence=fence)
    if known is not None:
        return known.receipt
    run = runs.get_run(connection)
    lease = work.find_lease(connection, worker, task=task, fence=fence)
    assert lease is not None, "a lease row stays"
    row = work.get_task(connection, task)
    newest = versions.newest_version(connection, run.id).version
    staleness = newest - lease.base_version
    if judgement.verdict is Verdict.ACCEPTED:
        changed = None
        if row.state not in LIVE:
            changed = _too_late(row)
        elif staleness > run.rule.max_staleness:
            changed = _stale(run, staleness)
        if changed is not None:
            judgement = Judgement(*changed, judgement.header, judgement.norm, None)
    report = ledger.insert_report(connection, _values(judgement, lease, now=now, staleness=max(0, staleness)))
    if report.verdict is Verdict.ACCEPTED:
        _accept(connection, run, row, lease, report, now=now)
        _keep_probe(connection, lease, judgement.header)
    else:
        _refuse(connection, lease, report, now=now)
    return report.receipt


def _values(judgement: Judgement, lease: LeaseRow, *, now: float, staleness: int) -> dict[str, object]:
    header = judgement.header
    return {
        "run_id": lease.run_id,
        "task_id": lease.task_id,
        "lease_id": lease.id,
        "worker": lease.worker,
        "fence": lease.fence,
        "verdict": judgement.verdict,
        "code": judgement.code[:64],
        "reason": judgement.reason[:400],
        "received_at": now,
        "base_version": lease.base_version,
        "staleness": staleness,
        "examples": header.examples if header else 0,
        "tokens": header.tokens if header else 0,
        "steps": header.steps if header else 0,
        "seconds": header.seconds if header else 0.0,
        "loss_first": header.loss_first if header else 0.0,
        "loss_last": header.loss_last if header else 0.0,
        "loss_mean": header.loss_mean if header else 0.0,
        "norm": judgement.norm,
        "blob_sha256": judgement.blob_sha256,
    }


def _accept(
    connection: Connection, run: RunRow, task: TaskRow, lease: LeaseRow, report: ReportRow, *, now: float
) -> None:
    other = work.open_lease_of_task(connection, task.id)
    if other is not None and other.id != lease.id:
        work.move_lease(connection, other, LeaseState.SUPERSEDED, now=now, reason="another report came first")
    work.move_lease(connection, lease, LeaseState.REPORTED, now=now)
    used, tail = positions.split(task.positions, report.examples)
    work.move_task(
        connection,
        task,
        TaskState.ACCEPTED,
        now=now,
        positions=[[s.start, s.count] for s in used],
        examples=report.examples,
    )
    if tail:
        work.write_free(connection, run, work.read_free(connection, run).give_back(tail))
    worker = fleet.get_worker(connection, lease.worker)
    speed = next_speed(
        worker.speed, tokens=report.tokens, seconds=report.seconds, calibrated=worker.calibrated_speed
    )
    fleet.update_worker(
        connection, worker.id, speed=speed, failures=0, rest_until=0.0, last_seen=now, gone=False
    )
    fleet.insert_telemetry(
        connection,
        time=now,
        worker=worker.id,
        task=task.id,
        tokens=report.tokens,
        tokens_per_second=report.tokens / report.seconds if report.seconds > 0 else 0.0,
        loss=report.loss_mean,
    )


def _keep_probe(connection: Connection, lease: LeaseRow, header: ReportHeader | None) -> None:
    """Store the held-out loss of the base, if this lease asked for it. The first measurement stays."""
    measured = header.heldout if header is not None else None
    if measured is None or not lease.probe or measured.version != lease.base_version:
        return
    base = versions.find_version(connection, lease.run_id, lease.base_version)
    if base is not None and base.heldout_loss is None:
        versions.update_version(
            connection,
            lease.run_id,
            base.version,
            heldout_loss=measured.loss,
            heldout_tokens=measured.tokens,
        )


def _refuse(connection: Connection, lease: LeaseRow, report: ReportRow, *, now: float) -> None:
    ending = Ending.REJECTED if report.verdict is Verdict.REJECTED else Ending.STALE
    reason = f"{report.verdict}: {report.code}"
    work.end_lease(connection, lease, ending, now=now, reason=reason)
    values: dict[str, object] = {"last_seen": now, "gone": False}
    if report.verdict is Verdict.REJECTED:
        failures = fleet.get_worker(connection, lease.worker).failures + 1
        values |= {"failures": failures, "rest_until": now + rest_seconds(failures)}
    fleet.update_worker(connection, lease.worker, **values)
