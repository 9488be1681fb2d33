"""Make the next version when the run's rule says so, and finish the run when its budget is done.

One leader calls this, off the request path. Blobs are durable before the one transaction that names the
version, marks its reports and moves their tasks; a crash anywhere leaves the newest complete version in
force and the flush is repeated with the same result.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection

from bithaul.coordinator import garbage
from bithaul.coordinator.commands.audits import end_repetitions
from bithaul.coordinator.commands.flush import Merged, flush
from bithaul.coordinator.commands.round import Round, read_glance, read_round
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import ledger, runs, versions, work
from bithaul.coordinator.database.ledger import ReportRow
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.errors import Conflict, CorruptFile
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.messages import RunState
from bithaul.rounds.facts import Contribution, Flush, Past
from bithaul.rounds.gates import Gate, agreements
from bithaul.rounds.merging import weights_of
from bithaul.rounds.outer import SMOOTHED_FLUSHES

LAST_REPORTS = 64  # whose size says what a full one is
TICK_EVERY = 1.0  # seconds between writes of the run's active time


def merge_round(c: Coordinator) -> VersionRow | None:
    """The version made, or None when nothing is due. Call again until None."""
    now = c.clock.now()
    with c.database.read() as connection:
        run = runs.find_run(connection)
        if run is None:
            return None
        glance = read_glance(connection, run, now=now)
        under_way = glance.leases > 0 and run.rule.too_early(glance)
        here = None if under_way else read_round(connection, run, now=now)
    if glance.leases:
        _get_ready()
    if here is None:  # most passes end here
        _carry_time(c, run, now=now, busy=True)
        return None
    _settle(c, here)
    facts = here.facts
    if not run.rule.due(facts):
        return None
    taken = run.rule.take(facts.contributions)
    chosen = {t.seq for t in taken}
    return _make_version(c, here, taken, [r for r in here.reports if r.seq in chosen])


def _get_ready() -> None:
    """Somebody is at work: what judges and merges updates is loaded now, not while one waits for it."""
    if "bithaul.rounds.kernels" in sys.modules:
        return
    from bithaul.exchange import kernels as _of_updates  # noqa: F401 - seconds
    from bithaul.rounds import kernels as _of_steps  # noqa: F401

    garbage.settle()


def _make_version(
    c: Coordinator, here: Round, taken: Sequence[Contribution], reports: Sequence[ReportRow]
) -> VersionRow | None:
    run, base = here.run, here.version
    began = c.clock.monotonic()
    past = _past(c, here)
    c.crash_points.hit("flush.chosen")
    merged = flush(
        c,
        rule=run.rule,
        codec=codec_named(run.codec),
        layout=run.layout,
        version=base.version + 1,
        base=c.blobs.get(_theta(base)),
        momentum=c.blobs.get(base.momentum_sha256) if base.momentum_sha256 else None,
        updates=[c.blobs.get(_payload(r)) for r in reports],
        plan=lambda products: run.rule.plan(taken, past=past, products=products),
        weights=run.weight_format,
        before=c.blobs.get(base.sha256) if run.weight_format.delta else None,
        products_wanted=Gate.AGREEMENT in run.gates and len(reports) > 0,
    )
    with c.database.write() as connection:
        newest = versions.newest_version(connection, run.id)
        if newest.lineage != base.lineage:
            return None  # the run went back meanwhile; what waits is looked at anew
        seconds = c.clock.monotonic() - began
        row = _announce(connection, here, newest, taken, reports, merged, now=c.clock.now(), seconds=seconds)
        c.crash_points.hit("flush.recorded")
    c.crash_points.hit("flush.committed")
    return row


def _past(c: Coordinator, here: Round) -> Past:
    with c.database.read() as connection:
        made = versions.newest_versions(connection, here.run.id, count=SMOOTHED_FLUSHES)
        sizes = ledger.last_merged_tokens(connection, here.run.id, count=LAST_REPORTS)
    return Past(
        version=here.version.version,
        active=len(here.may_work),
        flushes=[Flush(v.tokens, v.staleness) for v in made if v.reports],
        reports=sizes,
        trust=max((w.trust.weight(here.now) for w in here.may_work), default=1.0),
    )


def _theta(base: VersionRow) -> str:
    if base.theta_sha256 is None:
        raise CorruptFile(
            f"Version {base.version} has no float32 weights from which the next one could be made; "
            "restore the run from a backup."
        )
    return base.theta_sha256


def _payload(report: ReportRow) -> str:
    if report.blob_sha256 is None:
        raise CorruptFile(f"The payload of report {report.seq} is missing although it was never merged.")
    return report.blob_sha256


def _announce(
    connection: Connection,
    here: Round,
    newest: VersionRow,
    taken: Sequence[Contribution],
    reports: Sequence[ReportRow],
    merged: Merged,
    *,
    now: float,
    seconds: float,
) -> VersionRow:
    run, base = here.run, here.version
    if newest.version != base.version:
        raise Conflict("Another coordinator has made a version of this run; only one may serve a folder.")
    tokens = sum(r.tokens for r in reports)
    weight = max(1, tokens)
    row = VersionRow(
        run_id=run.id,
        version=base.version + 1,
        sha256=merged.weights.sha256,
        size=merged.weights.size,
        created_at=now,
        theta_sha256=merged.theta.sha256,
        momentum_sha256=merged.momentum.sha256 if merged.momentum else None,
        delta_sha256=merged.delta.sha256 if merged.delta else None,
        reports=len(reports),
        contributors=len({r.worker for r in reports}),
        tokens=tokens,
        tokens_total=base.tokens_total + tokens,
        staleness=math.fsum(t.staleness * t.tokens for t in taken) / weight,
        step_norm=merged.step_norm,
        train_loss=math.fsum(r.loss_mean * r.tokens for r in reports) / weight,
        merge_seconds=seconds,
        outer_step=asdict(merged.plan),
        lineage=base.lineage,
        active_seconds=run.seconds_at(now),
    )
    versions.insert_version(connection, row)
    ledger.mark_merged(connection, [r.seq for r in reports], row.version)
    if Gate.AGREEMENT in run.gates and merged.products is not None:
        found = agreements(merged.products, weights_of(taken))
        ledger.note_agreements(connection, dict(zip([t.seq for t in taken], found, strict=True)))
    work.settle_tasks(connection, [r.task_id for r in reports], now=now)
    return row


def _settle(c: Coordinator, here: Round) -> None:
    """Carry the run's active time forward and finish it when its budget is done."""
    run, now = here.run, here.now
    if run.state is RunState.RUNNING and here.complete:
        with c.database.write() as connection:
            again = read_round(connection, runs.get_run(connection), now=now)
            if again.run.state is RunState.RUNNING and again.complete:
                runs.tick_active(connection, again.run, now=now, busy=False)
                runs.update_run(connection, run.id, state=RunState.FINISHED)
                end_repetitions(connection, run, now=now)
        return
    busy = bool(here.leases) or (run.state is RunState.RUNNING and bool(here.facts.workers))
    _carry_time(c, run, now=now, busy=busy)


def _carry_time(c: Coordinator, run: RunRow, *, now: float, busy: bool) -> None:
    due = run.active_anchor is not None and now - run.active_anchor >= TICK_EVERY
    if due or (busy and run.active_anchor is None and run.state is RunState.RUNNING):
        with c.database.write() as connection:
            runs.tick_active(connection, runs.get_run(connection), now=now, busy=busy)
