"""The audit: flag tasks, lease repetitions of merged ones, compare both runs, and say what came of it.

The rules are `rounds.audits`. A repetition is a lease on a merged task, which stays merged: its tokens are in
no budget, no round waits for it, and its report changes no weights. It is credited like other work. Nothing
is lost when it expires or the coordinator dies: another worker gets it, three times at most.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import Connection

from bithaul.coordinator.commands import standing
from bithaul.coordinator.commands.leasing import common_values, terms_of
from bithaul.coordinator.commands.round import Outline
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, repetitions, versions, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.ledger import ReportRow
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.database.work import LeaseRow, TaskRow
from bithaul.errors import CorruptFile, NotFound
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import read_header
from bithaul.exchange.messages import ReportHeader
from bithaul.rounds.aggregate import PRODUCT_VALUES, Products
from bithaul.rounds.audits import LONGEST, Draw, Waiting, choose, draw, likeness, repeatable
from bithaul.rounds.gates import AUDIT_COSINE, Gate
from bithaul.rounds.leases import Ending
from bithaul.rounds.sizing import Size

NOT_FLAGGED = Draw(flagged=False, repeated=False)


def draw_audit(c: Coordinator, run: RunRow, worker: WorkerRow) -> Draw:
    """Whether the worker's next task is flagged, and whether it will be repeated.

    The chance is no function of anything that the worker is told.
    """
    if Gate.AUDIT not in run.gates or not worker.audits:
        return NOT_FLAGGED
    digest = hashlib.blake2b(c.ids.fence().encode(), digest_size=8).digest()
    return draw(int.from_bytes(digest, "big") / 2.0**64, streak=worker.streak)


def flagged_size(connection: Connection, here: Outline, worker: WorkerRow, size: Size) -> Size | None:
    """What a flagged task may carry so that somebody can repeat it; None: nobody is there who could."""
    others = fleet.auditors(connection, now=here.now)
    others.pop(worker.id, None)
    if not others:
        return None
    run = here.run
    return repeatable(
        size,
        tokens=max(others.values()) * here.length,
        batch_tokens=run.batch_tokens,
        batch_examples=run.batch_examples,
    )


def lease_repetition(
    c: Coordinator, connection: Connection, here: Outline, worker: WorkerRow
) -> tuple[LeaseRow, TaskRow, VersionRow] | None:
    """A merged task for this worker to run again; None: there is none."""
    if Gate.AUDIT not in here.run.gates or not worker.audits:
        return None
    run, now = here.run, here.now
    found = repetitions.waiting_for(connection, run.id, worker=worker.id, lineage=here.version.lineage)
    if not found:
        return None
    rows = {row.seq: row for row in found}
    missed = {name: _missed_by(connection, run, name) for name in {row.worker for row in found}}
    chosen = choose(
        [Waiting(row.seq, row.worker, row.tokens, missed[row.worker]) for row in found],
        worker=worker.id,
        able=list(fleet.auditors(connection, now=now)),
        speed=worker.planning_speed,
        seconds=LONGEST * here.length,
        busy=repetitions.open_count(connection, run.id),
    )
    if chosen is None:
        return None
    first = rows[chosen.report]
    base = versions.find_version(connection, run.id, first.base_version)
    assert base is not None
    task, old = work.get_task(connection, first.task_id), work.get_lease(connection, first.lease_id)
    terms = terms_of(run, worker, task, base)
    used = min(1.0, terms.tokens / old.expected_tokens) if old.expected_tokens > 0 else 1.0
    lease = work.insert_lease(
        connection,
        task,
        {
            **common_values(c, run, worker, base, terms, now=now),
            "aimed_at": now + terms.training,
            "soft_stop_seconds": terms.last_seconds,  # a part of it could not be compared
            "progress_start": old.progress_start,
            "progress_end": old.progress_start + used * (old.progress_end - old.progress_start),
            "seed": old.seed,
            "probe": False,
            "audit": True,
            "repeat": False,
            "repeats": first.seq,
        },
    )
    return lease, task, base


def _missed_by(connection: Connection, run: RunRow, worker: str) -> str | None:
    last = repetitions.newest(connection, run.id, worker)[-1:]
    return last[0].by if last and not last[0].alike else None


def closed(connection: Connection, first: ReportRow) -> str | None:
    """Why there is nothing to compare any more; None: there is."""
    if first.discarded_in is not None:
        return "The run went back to an older version meanwhile; there is nothing to compare with."
    if repetitions.is_done(connection, first.seq):
        return "Another repetition of this task came first."
    return None


def compare(c: Coordinator, run: RunRow, first: ReportRow, header: ReportHeader, path: Path) -> float | None:
    """How alike the update at `path` is to the first run's; None: they cannot be compared.

    That is when it stopped before the first did, or the first one's payload is no longer there.
    """
    if header.examples < first.examples or first.blob_sha256 is None:
        return None
    codec, total = codec_named(run.codec), Products(2)
    try:
        with ExitStack() as stack:
            read = []
            for source in (c.blobs.get(first.blob_sha256).path, path):
                file = stack.enter_context(source.open("rb"))
                read_header(file)
                read.append(codec.pieces(file, run.layout, chunk_values=PRODUCT_VALUES))
            for pieces in zip(*read, strict=True):
                total.add(None, pieces)
    except (NotFound, FileNotFoundError, CorruptFile):  # damage is the merger's to find
        return None
    found = total.matrix
    return likeness(float(found[1, 1]), float(found[1, 2]), float(found[2, 2]))


def verdict_of(likeness: float | None) -> str:
    """What the receipt of a repetition says."""
    if likeness is None:
        return "Repeated for the audit; it could not be compared with the first run."
    word = "as" if likeness >= AUDIT_COSINE else "otherwise than"
    return f"Repeated for the audit; it came out {word} the first run did (likeness {likeness:.3f})."


def settle(
    connection: Connection, run: RunRow, first: ReportRow, second: ReportRow, *, likeness: float, now: float
) -> None:
    """Write the comparison down and let it count for the worker of the first run."""
    repetitions.insert(connection, first, second, likeness=likeness, now=now)
    if likeness >= AUDIT_COSINE:
        return
    standing.differed(
        connection,
        fleet.get_worker(connection, first.worker),
        repetitions.newest(connection, run.id, first.worker),
        task=first.task_id,
        now=now,
    )


def end_repetitions(connection: Connection, run: RunRow, *, now: float) -> None:
    """The run is over: nobody goes on repeating."""
    for lease in work.open_leases(connection, run.id):
        if lease.repeats is not None:
            work.end_lease(connection, lease, Ending.RELEASED, now=now, reason="the run is finished")
