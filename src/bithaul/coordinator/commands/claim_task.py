"""GET /work: lease one task to a worker, or say when to ask again.

An open lease on a usable base is answered again with the same fence, so asking twice is harmless. The base
version is bound here, never when a task is queued. One transaction decides and writes. It does not wait for
the disk: a lease that a power cut takes back costs its worker one task, and its report brings it to the disk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection

from bithaul.coordinator.commands.audits import NOT_FLAGGED, draw_audit, flagged_size, lease_repetition
from bithaul.coordinator.commands.leasing import common_values, terms_of
from bithaul.coordinator.commands.round import Outline, read_outline, read_tick
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, ledger, runs, versions, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.runs import RunRow, ShardRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.database.work import LeaseRow, TaskRow
from bithaul.exchange.deltas import delta_size, longest_chain
from bithaul.exchange.messages import DeltaRef, Range, RunState, TaskMessage
from bithaul.rounds import positions
from bithaul.rounds.leases import ClaimFacts, Ending, NoLease, refuse_claim
from bithaul.rounds.sizing import Size, Sizing, retry_seconds, task_size
from bithaul.rounds.trust import Standing

SEEN_EVERY = 1.0  # seconds between updates of last_seen by polling
LONGEST_TASK = 2.0  # rounds, generously: `task_size` plans for less
PROBE_SPEED = 2.5  # measuring is so many times faster than training
PROBE_AGAIN_SECONDS = 60.0  # a probe that was handed out and brought nothing is handed out again after

RETRY = {  # seconds, in rounds of eight
    NoLease.NOT_READY: 1.0,
    NoLease.DRAINED: 5.0,
    NoLease.NOT_RUNNING: 2.0,
    NoLease.SET_ASIDE: 10.0,
    NoLease.RESTING: 10.0,
    NoLease.MERGING: 0.1,
    NoLease.NO_WORK: 0.25,
}


@dataclass(frozen=True)
class Held:
    """An open lease with what its worker is told about it."""

    lease: LeaseRow
    task: TaskRow
    base: VersionRow


@dataclass(frozen=True)
class Claim:
    """`task` None: ask again after `retry_after` seconds; `state` says whether there will be more work."""

    task: TaskMessage | None
    retry_after: float
    state: RunState


def claim_task(c: Coordinator, worker: str, *, instance: str | None = None) -> Claim:
    """Raises `Gone` for a worker that is not registered, or that another `instance` is now."""
    now = c.clock.now()
    with c.database.write(durable=False) as connection:
        run = runs.get_run(connection)
        row = _seen(connection, fleet.get_worker(connection, worker, instance=instance), now=now)
        held = _kept_lease(connection, run, row, now=now)
        state = run.state
        if held is None:
            early = _early(connection, run, row, now=now)
            if early is not None:
                return Claim(None, early, run.state)
            here = read_outline(connection, run, now=now)
            if not here.work_left:
                return Claim(None, _retry(NoLease.NO_WORK, row, now=now, length=here.length), run.state)
            held, state = _repetition(c, connection, here, row), run.state
            if held is None:
                held, state = _grant(c, connection, here, row), RunState.RUNNING
        message = _message(connection, run, held, now=now)
        c.crash_points.hit("claim.decided")
    c.crash_points.hit("claim.committed")
    return Claim(message, 0.0, state)


def _seen(connection: Connection, row: WorkerRow, *, now: float) -> WorkerRow:
    if row.gone or now - row.last_seen >= SEEN_EVERY:
        return fleet.see_worker(connection, row, now=now)
    return row


def _early(connection: Connection, run: RunRow, worker: WorkerRow, *, now: float) -> float | None:
    """When to ask again, if the worker gets nothing for reasons of its own: most polls end here."""
    tick, length, waits = now, run.task_seconds, False
    if ledger.has_unmerged(connection, run.id, worker.id):
        version = versions.newest_version(connection, run.id)
        tick, length = read_tick(connection, run, version, now=now)
        waits = run.rule.waits(left=max(0.0, tick - now), length=length)
    refusal = refuse_claim(_facts(run, worker, now=now, waits=waits))
    return None if refusal is None else _retry(refusal, worker, now=now, length=length, left=tick - now)


def _retry(refusal: NoLease, worker: WorkerRow, *, now: float, length: float, left: float = 0.0) -> float:
    if refusal is NoLease.RESTING:
        return max(0.1, min(worker.rest_until - now, retry_seconds(RETRY[refusal], length=length)))
    return retry_seconds(RETRY[refusal], length=length, left=left if refusal is NoLease.MERGING else 0.0)


def _kept_lease(connection: Connection, run: RunRow, worker: WorkerRow, *, now: float) -> Held | None:
    """The worker's open lease, if a report on its base can still count; otherwise it ends here."""
    held = work.open_leases(connection, run.id, worker=worker.id)
    if not held:
        return None
    newest = versions.newest_version(connection, run.id)
    for lease in held:
        base = versions.find_version(connection, run.id, lease.base_version)
        ending = _ending(run, worker, lease, base, newest=newest, now=now)
        if ending is None and base is not None:
            return Held(lease, work.get_task(connection, lease.task_id), base)
        work.end_lease(connection, lease, ending or Ending.REVOKED, now=now)
    return None


def _ending(
    run: RunRow,
    worker: WorkerRow,
    lease: LeaseRow,
    base: VersionRow | None,
    *,
    newest: VersionRow,
    now: float,
) -> Ending | None:
    """How an open lease ends when its worker asks for work; None: it goes on."""
    if now >= lease.deadline:
        return Ending.EXPIRED
    if worker.drained:
        return Ending.RELEASED
    if lease.audit and not worker.audits:
        return Ending.RELEASED  # by an older software, which does not know it
    if base is None or base.retired_at or base.lineage != newest.lineage:
        return Ending.REVOKED
    if lease.repeats is not None:
        return None  # it is not merged, so its base may be of any age
    return Ending.REVOKED if newest.version - base.version > run.rule.max_staleness else None


def _facts(run: RunRow, worker: WorkerRow, *, now: float, waits: bool) -> ClaimFacts:
    return ClaimFacts(
        ready=worker.ready,
        drained=worker.drained,
        set_aside=worker.standing == Standing.SET_ASIDE,
        rest_seconds=max(0.0, worker.rest_until - now),
        run_running=run.state in (RunState.READY, RunState.RUNNING),
        work_left=True,  # looked at last, it takes reading the whole round
        waits_for_merge=waits,
    )


def _grant(c: Coordinator, connection: Connection, here: Outline, worker: WorkerRow) -> Held:
    run, now = here.run, here.now
    probe = _probe(connection, here)
    fleet_speed = sharing = fleet.fleet_speed(connection, now=now)
    if here.remaining_tokens < LONGEST_TASK * max(here.length, here.tick - now) * fleet_speed:
        sharing = fleet.idle_speed(connection, now=now)  # the worker that asks is among the idle ones
    size = _size(here, worker, sharing, probe_tokens=probe.tokens if probe else 0)
    audit = draw_audit(c, run, worker)
    if audit.flagged:
        smaller = flagged_size(connection, here, worker, size)
        if smaller is None or work.next_pending(connection, run.id, worker=worker.id) is not None:
            audit = NOT_FLAGGED  # nobody could repeat it; or what waits was cut for more steps
        else:
            size = smaller
    task = _task(connection, here, worker, size)
    terms = terms_of(run, worker, task, here.version)
    start = run.progress_at(now, tokens=here.spent.reported)
    end = _expected_end(here, size, fleet_speed)
    if run.state is RunState.READY:
        runs.update_run(connection, run.id, state=RunState.RUNNING)
    if run.active_anchor is None:
        runs.tick_active(connection, run, now=now, busy=True)
    lease = work.insert_lease(
        connection,
        task,
        {
            **common_values(c, run, worker, here.version, terms, now=now),
            "aimed_at": now + size.seconds,
            "soft_stop_seconds": size.soft_stop_seconds,
            "progress_start": start,
            "progress_end": max(start, end),
            "seed": _seed(run, task.id),
            "probe": probe is not None,
            "audit": audit.flagged,
            "repeat": audit.repeated,
            "repeats": None,
        },
    )
    return Held(lease, task, here.version)


def _repetition(c: Coordinator, connection: Connection, here: Outline, worker: WorkerRow) -> Held | None:
    found = lease_repetition(c, connection, here, worker)
    return None if found is None else Held(*found)


def _size(here: Outline, worker: WorkerRow, sharing: float, *, probe_tokens: int) -> Size:
    """`sharing`: the speed, tokens per second, of those among whom the rest of the budget is shared out."""
    return task_size(
        Sizing(
            speed=worker.planning_speed,
            fleet_speed=sharing,
            round_seconds=here.length,
            seconds_left=max(0.0, here.tick - here.now),
            overhead_seconds=probe_tokens / (PROBE_SPEED * worker.planning_speed),
            remaining_tokens=here.remaining_tokens,
            remaining_seconds=here.remaining_seconds,
            tokens_per_example=here.run.tokens_per_example,
            batch_examples=here.run.batch_examples,
        )
    )


def _task(connection: Connection, here: Outline, worker: WorkerRow, size: Size) -> TaskRow:
    """A task that waits (expired, returned or seeded) and this worker has not failed, else a fresh slice.

    A waiting task may be more than this worker can do: its soft stop comes from `size`, not from the task.
    """
    run = here.run
    waiting = work.next_pending(connection, run.id, worker=worker.id)
    if waiting is not None:
        return waiting
    slice_, free = work.read_free(connection, run).cut(size.examples)
    work.write_free(connection, run, free)
    return work.insert_task(connection, run.id, slice_, now=here.now)


def _expected_end(here: Outline, size: Size, fleet_speed: float) -> float:
    """Share of the budget when everybody's current task is done."""
    ahead = min(here.spent.reported + fleet_speed * size.seconds, here.run.budget_tokens or float("inf"))
    return here.run.progress_at(here.now + size.seconds, tokens=ahead)


def _seed(run: RunRow, task: int) -> int:
    digest = hashlib.blake2b(f"{run.seed}/{run.name}/{task}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def _probe(connection: Connection, here: Outline) -> ShardRow | None:
    """The shard on which this worker measures the base: every k-th version, the first, the last ones.

    One worker per version is asked; another one when that brings nothing.
    """
    version, run = here.version, here.run
    if run.probe_every < 1 or version.heldout_loss is not None:
        return None
    if version.probe_leased_at is not None and here.now - version.probe_leased_at < PROBE_AGAIN_SECONDS:
        return None
    shards = runs.list_shards(connection, run.id, "probe")
    last = run.progress_at(here.now, tokens=here.spent.reported) > 0.97
    if not shards or (version.version != 1 and version.version % run.probe_every and not last):
        return None
    versions.update_version(connection, run.id, version.version, probe_leased_at=here.now)
    return shards[0]


def _deltas(connection: Connection, run: RunRow, base: VersionRow) -> list[DeltaRef]:
    """The last deltas that lead to `base`, as many as are fewer bytes than all of it."""
    if run.weight_format.delta is None:
        return []
    size, found = delta_size(run.layout, run.weight_format), list[DeltaRef]()
    while base.delta_sha256 and len(found) < longest_chain(run.layout, run.weight_format):
        before = versions.find_version(connection, run.id, base.version - 1)
        if before is None:
            break
        found.insert(
            0,
            DeltaRef(version=base.version, base_sha256=before.sha256, sha256=base.delta_sha256, size=size),
        )
        base = before
    return found


def _message(connection: Connection, run: RunRow, held: Held, *, now: float) -> TaskMessage:
    lease, task, base = held.lease, held.task, held.base
    shards = runs.list_shards(connection, run.id, "train")
    found = positions.pieces(
        task.positions, shard_sizes=[s.examples for s in shards], seed=run.seed, block=run.position_block
    )
    return TaskMessage(
        task=task.id,
        fence=lease.fence,
        lineage=base.lineage,
        base_version=lease.base_version,
        weights_sha256=base.sha256,
        weights_size=base.size,
        weights_deltas=_deltas(connection, run, base),
        ranges=[Range(shard=shards[p.shard].id, first=p.first, count=p.count) for p in found],
        examples=task.examples,
        progress_start=lease.progress_start,
        progress_end=lease.progress_end,
        seed=lease.seed,
        soft_stop_seconds=lease.soft_stop_seconds,
        probe=lease.probe,
        audit=lease.audit,
        deadline_seconds=max(0.0, lease.deadline - now),
    )
