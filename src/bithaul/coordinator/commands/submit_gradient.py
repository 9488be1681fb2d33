"""Judge a complete, fsynced update and answer with a receipt that never changes.

Ownership first, then the gates, then one transaction: ledger row, task, returned positions, lease, worker,
receipt. Nothing is acknowledged before it is durable; the merger is woken after. See exchange.md §3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from bithaul.coordinator.blobs.store import UploadedFile
from bithaul.coordinator.commands import audits, scores
from bithaul.coordinator.commands.begin_upload import unknown_fence
from bithaul.coordinator.commands.gates import (
    COPIED,
    NON_FINITE_CODE,
    Before,
    Given,
    Refused,
    judge,
    judge_header,
    largest_places,
)
from bithaul.coordinator.commands.inspection import keep_for_inspection
from bithaul.coordinator.commands.standing import delivered, failed
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, ledger, runs, versions, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.ledger import ReportRow
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.database.work import LeaseRow, TaskRow
from bithaul.coordinator.lookalikes import Places
from bithaul.corpus.shards import targets_of
from bithaul.errors import BithaulError, Conflict, CorruptFile, NotFound
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import read_header
from bithaul.exchange.messages import Receipt, ReportHeader, Verdict
from bithaul.rounds import positions
from bithaul.rounds.gates import Gate, Seen, SpeedVerdict, speed_gate
from bithaul.rounds.leases import Ending, LeaseState, TaskState
from bithaul.rounds.sizing import next_speed

LIVE = (TaskState.PENDING, TaskState.LEASED)
MERGEABLE = (Verdict.ACCEPTED, Verdict.COMPARED)  # they passed every gate
COMPARED_WITH = 64  # last accepted updates of others, of which a sparse one must be no near copy
LOOKED_BACK = 1024  # accepted reports among which the norm gate finds its 64
StillAllowed = Callable[[Connection], object]
Closed = tuple[Verdict, str, str]  # why: verdict, code, sentence


@dataclass(frozen=True)
class Judgement:
    """What will be written. `header` None: the frame could not be read, or its counts are impossible."""

    verdict: Verdict
    code: str
    reason: str
    header: ReportHeader | None
    norm: float = 0.0
    clip: float = 1.0
    blob_sha256: str | None = None
    struck: str = ""  # why it is a strike
    likeness: float | None = None  # of a repetition to the first run


@dataclass(frozen=True)
class Asked:
    """The lease a report is for, and where the run stands."""

    run: RunRow
    worker: WorkerRow
    lease: LeaseRow
    task: TaskRow
    base: VersionRow | None  # None: the coordinator was restored from a backup
    newest: VersionRow
    first: ReportRow | None  # the report that this lease repeats

    @property
    def staleness(self) -> int:
        return max(0, self.newest.version - self.lease.base_version)

    @property
    def lineage(self) -> int:
        return self.base.lineage if self.base is not None else self.newest.lineage

    @property
    def slice_examples(self) -> int:
        """As it was leased: an accepted report has cut it to what was used."""
        leased = round(self.lease.expected_tokens / self.run.tokens_per_example)
        return max(self.task.examples, leased)


def submit_gradient(
    c: Coordinator,
    worker: str,
    *,
    task: int,
    fence: str,
    upload: UploadedFile,
    still_allowed: StillAllowed | None = None,
) -> Receipt:
    """The receipt; its verdict `rejected` is a 422 at the door, all others a 200. The upload is consumed.

    `still_allowed` is asked in the transaction that applies the update, and raises when the credential it
    came with has been revoked while it was judged.

    Raises `Conflict` with code `unknown_fence` or `base_from_future`, `OutOfDisk`, `Gone`.
    """
    try:
        c.crash_points.hit("upload.complete")
        return _submit(c, worker, task=task, fence=fence, upload=upload, still_allowed=still_allowed)
    finally:
        upload.path.unlink(missing_ok=True)  # gone already when it became a blob


def _submit(
    c: Coordinator,
    worker: str,
    *,
    task: int,
    fence: str,
    upload: UploadedFile,
    still_allowed: StillAllowed | None,
) -> Receipt:
    with c.database.read() as connection:
        known = _known(connection, worker, task=task, fence=fence)
        if known is not None:
            return known
        asked = _asked(connection, worker, task=task, fence=fence)
        past = _past(connection, asked.run)
        closed = _closed(connection, asked)
    judgement = _judge(c, asked, upload, past, closed)
    c.crash_points.hit("submit.gated")
    if judgement.verdict is Verdict.ACCEPTED:
        c.blobs.adopt(upload)
        c.crash_points.hit("submit.adopted")
    with c.database.write() as connection:
        if still_allowed is not None:
            still_allowed(connection)
        receipt = _record(c, connection, judgement, worker=worker, task=task, fence=fence)
        c.crash_points.hit("submit.recorded")
    c.crash_points.hit("submit.committed")
    if judgement.code == NON_FINITE_CODE:
        keep_for_inspection(c, upload, task=task, fence=fence)
    c.events.merge.set()
    return receipt


def _known(connection: Connection, worker: str, *, task: int, fence: str) -> Receipt | None:
    fleet.get_worker(connection, worker)
    report = ledger.find_report(connection, worker, task=task, fence=fence)
    return None if report is None else report.receipt


def _asked(connection: Connection, worker: str, *, task: int, fence: str) -> Asked:
    run = runs.get_run(connection)
    lease = work.find_lease(connection, worker, task=task, fence=fence)
    if lease is None:
        raise unknown_fence()
    return Asked(
        run=run,
        worker=fleet.get_worker(connection, worker),
        lease=lease,
        task=work.get_task(connection, task),
        base=versions.find_version(connection, run.id, lease.base_version),
        newest=versions.newest_version(connection, run.id),
        first=None if lease.repeats is None else ledger.get_report(connection, lease.repeats),
    )


def _past(connection: Connection, run: RunRow) -> list[Seen]:
    if Gate.NORM not in run.gates:
        return []
    return ledger.last_accepted(connection, run.id, count=LOOKED_BACK)


def _judge(
    c: Coordinator, asked: Asked, upload: UploadedFile, past: list[Seen], closed: Closed | None
) -> Judgement:
    run, lease, first = asked.run, asked.lease, asked.first

    def is_anothers(sha256: str) -> bool:
        with c.database.read() as connection:
            return ledger.has_payload_of_another(connection, run.id, lease.worker, sha256)

    def others() -> Iterator[Places]:
        with c.database.read() as connection:
            blobs = ledger.last_payloads_of_others(connection, run.id, lease.worker, count=COMPARED_WITH)
        for sha256 in blobs:
            with suppress(NotFound, CorruptFile):  # retired meanwhile; damage is the merger's to find
                path = c.blobs.get(sha256).path
                yield c.lookalikes.of(sha256, partial(_largest, run, path))

    if closed is not None:
        return _unmerged(*closed, asked, upload)
    if lease.base_version > asked.newest.version:
        raise Conflict(
            f"The update starts from version {lease.base_version}, the newest here is "
            f"{asked.newest.version}: the coordinator was restored from a backup; ask for work again.",
            code="base_from_future",
        )
    verdict = judge(
        run,
        lease,
        upload.path,
        lineage=asked.lineage,
        given=Given(asked.task.examples, partial(_tokens_of, c, asked)),
        before=Before(past, is_anothers, others) if first is None else Before(past),  # it should be a copy
    )
    if isinstance(verdict, Refused):
        if verdict.header is not None and verdict.header.base_version > asked.newest.version:
            raise Conflict(
                f"The update starts from version {verdict.header.base_version}, the newest here is "
                f"{asked.newest.version}; ask for work again.",
                code="base_from_future",
            )
        struck = verdict.reason if verdict.strikes else ""
        return Judgement(Verdict.REJECTED, verdict.code, verdict.reason, verdict.header, struck=struck)
    if first is not None:
        found = audits.compare(c, run, first, verdict.header, upload.path)
        return _compared(asked, verdict.header, verdict.norm, found, now=c.clock.now())
    passed = Judgement(
        Verdict.ACCEPTED,
        "",
        "",
        verdict.header,
        norm=verdict.norm,
        clip=verdict.clip,
        blob_sha256=upload.sha256,
    )
    return _weighed(passed, asked.worker, now=c.clock.now())


def _tokens_of(c: Coordinator, asked: Asked, examples: int) -> int:
    """Of the first examples of the leased slice, by the indices of the shards."""
    run, (used, _) = asked.run, positions.split(asked.task.positions, examples)
    with c.database.read() as connection:
        shards = runs.list_shards(connection, run.id, "train")
    sizes = [shard.examples for shard in shards]
    total = 0
    for piece in positions.pieces(used, shard_sizes=sizes, seed=run.seed, block=run.position_block):
        try:
            total += targets_of(c.blobs.get(shards[piece.shard].index_sha256).path, piece.first, piece.count)
        except (NotFound, CorruptFile):  # ours is broken, not the update
            return examples * run.model.context_length
    return total


def _largest(run: RunRow, path: Path) -> Places:
    return largest_places(path, codec=codec_named(run.codec), layout=run.layout)


def _closed(connection: Connection, asked: Asked) -> Closed | None:
    """Why nothing of this lease can be merged any more, or compared."""
    task, run = asked.task, asked.run
    if asked.first is not None:
        if asked.lineage != asked.newest.lineage:
            return Verdict.STALE, "rolled_back", "The run went back to an older version meanwhile."
        why = audits.closed(connection, asked.first)
        return None if why is None else (Verdict.TOO_LATE, "too_late", why)
    if task.state in (TaskState.ACCEPTED, TaskState.MERGED):
        return Verdict.TOO_LATE, "too_late", "Another report of this task was accepted first."
    if task.state not in LIVE:
        return Verdict.TOO_LATE, "task_closed", f"The task is {task.state}; its slice was given up."
    if asked.lineage != asked.newest.lineage:
        return Verdict.STALE, "rolled_back", "The run went back to an older version meanwhile."
    if asked.staleness > run.rule.max_staleness:
        limit = run.rule.max_staleness
        reason = f"The base is {asked.staleness} versions old, at most {limit} are merged."
        return Verdict.STALE, "stale", reason
    return None


def _first_of_its_kind(connection: Connection, asked: Asked, judgement: Judgement) -> Judgement:
    """The same payload of another may have been accepted while this one was judged."""
    run, header = asked.run, judgement.header
    if header is None or Gate.COPY not in run.gates:
        return judgement
    if not ledger.has_payload_of_another(connection, run.id, asked.worker.id, header.payload_sha256):
        return judgement
    return Judgement(Verdict.REJECTED, "copy", COPIED, header)


def _weighed(judgement: Judgement, worker: WorkerRow, *, now: float) -> Judgement:
    """An update of weight 0 is compared, not merged."""
    if worker.trust.weight(now) > 0:
        return judgement
    state = worker.trust.at(now)
    reason = f"This worker is {state.standing} ({state.reason}); its way out: {state.way_out}."
    return Judgement(Verdict.COMPARED, "no_weight", reason, judgement.header, norm=judgement.norm)


def _compared(
    asked: Asked, header: ReportHeader, norm: float, likeness: float | None, *, now: float
) -> Judgement:
    """A repetition. The word of a worker that weighs nothing says nothing about another."""
    assert asked.first is not None
    if asked.worker.trust.weight(now) == 0.0:
        likeness = None
    reason = audits.verdict_of(likeness)
    return Judgement(Verdict.COMPARED, "repeated", reason, header, norm=norm, likeness=likeness)


def _unmerged(verdict: Verdict, code: str, reason: str, asked: Asked, upload: UploadedFile) -> Judgement:
    """Of a report that is not merged only the header matters, for credit as compute."""
    try:
        with upload.path.open("rb") as file:
            header = read_header(file)
    except BithaulError:
        return Judgement(verdict, code, reason, None)  # not even a header: nothing to credit
    context = asked.run.model.context_length
    given = Given(asked.slice_examples, lambda examples: examples * context)  # which they were is forgotten
    wrong = judge_header(asked.run, asked.lease, header, lineage=asked.lineage, given=given)
    return Judgement(verdict, code, reason, header if wrong is None else None)


def _record(
    c: Coordinator, connection: Connection, judgement: Judgement, *, worker: str, task: int, fence: str
) -> Receipt:
    """The one transaction. Looks at everything again: another report may have come first."""
    now = c.clock.now()
    known = _known(connection, worker, task=task, fence=fence)
    if known is not None:
        return known
    asked = _asked(connection, worker, task=task, fence=fence)
    if judgement.verdict in MERGEABLE:
        closed = _closed(connection, asked)
        if closed is not None:
            judgement = Judgement(*closed, judgement.header)
        elif asked.first is None:
            judgement = _first_of_its_kind(connection, asked, judgement)
        if judgement.verdict in MERGEABLE and asked.first is None:
            judgement = _weighed(judgement, asked.worker, now=now)
    credit = _credit(asked, judgement, now=now)
    values = _values(asked, judgement, credit, now=now)
    if judgement.verdict is Verdict.ACCEPTED:
        values["to_score"] = scores.draw_score(c, asked.run, asked.worker)
    report = ledger.insert_report(connection, values)
    if report.verdict is Verdict.ACCEPTED:
        _accept(connection, asked, report, now=now)
        _keep_probe(connection, asked.lease, judgement.header)
        struck = "faster than its calibration allows" if credit.strike else ""
        delivered(connection, asked.worker, struck=struck, now=now)
    else:
        _refuse(connection, asked, report, struck=judgement.struck, now=now)
    if asked.first is not None and judgement.likeness is not None:
        audits.settle(connection, asked.run, asked.first, report, likeness=judgement.likeness, now=now)
    return report.receipt


def _credit(asked: Asked, judgement: Judgement, *, now: float) -> SpeedVerdict:
    """What the report earns: its tokens, also when it is not merged; nothing when it is rejected.

    For its speed, it took no longer than its lease is old, whatever it says.
    """
    header = judgement.header
    if header is None or judgement.verdict is Verdict.REJECTED:
        return SpeedVerdict(0, strike=False)
    if Gate.SPEED not in asked.run.gates:
        return SpeedVerdict(header.tokens, strike=False)
    seconds = min(header.seconds, now - asked.lease.granted_at)
    return speed_gate(tokens=header.tokens, seconds=seconds, calibrated=asked.worker.calibrated_speed)


def _values(asked: Asked, judgement: Judgement, credit: SpeedVerdict, *, now: float) -> dict[str, object]:
    header, lease = judgement.header, asked.lease
    accepted = judgement.verdict is Verdict.ACCEPTED
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
        "staleness": asked.staleness,
        "examples": header.examples if header else 0,
        "tokens": header.tokens if header else 0,
        "steps": header.steps if header else 0,
        "seconds": header.seconds if header else 0.0,
        "loss_first": header.loss_first if header else 0.0,
        "loss_last": header.loss_last if header else 0.0,
        "loss_mean": header.loss_mean if header else 0.0,
        "norm": judgement.norm,
        "weight": asked.worker.trust.weight(now) if accepted else 0.0,
        "clip": judgement.clip if accepted else 1.0,
        "credited": credit.tokens,
        "payload_sha256": header.payload_sha256 if header else None,
        "blob_sha256": judgement.blob_sha256,
    }


def _accept(connection: Connection, asked: Asked, report: ReportRow, *, now: float) -> None:
    run, task, lease, worker = asked.run, asked.task, asked.lease, asked.worker
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
    speed = next_speed(
        worker.speed,
        tokens=report.tokens,
        seconds=report.seconds,
        elapsed=now - lease.granted_at,
        calibrated=worker.calibrated_speed,
    )
    fleet.update_worker(connection, worker.id, speed=speed)
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


ENDINGS = {
    Verdict.REJECTED: Ending.REJECTED,
    Verdict.COMPARED: Ending.COMPARED,
    Verdict.STALE: Ending.STALE,
    Verdict.TOO_LATE: Ending.STALE,
}


def _refuse(connection: Connection, asked: Asked, report: ReportRow, *, struck: str, now: float) -> None:
    reason = f"{report.verdict}: {report.code}"
    work.end_lease(connection, asked.lease, ENDINGS[report.verdict], now=now, reason=reason)
    if report.verdict is Verdict.REJECTED:
        failed(connection, asked.worker, struck=struck, now=now)
    else:
        well = {"failures": 0} if asked.first is not None and report.verdict is Verdict.COMPARED else {}
        fleet.update_worker(connection, asked.worker.id, last_seen=now, gone=False, **well)
