"""Tasks and leases as state machines: which moves exist, and what each ending means for the task.

Pure decisions over plain data; `commands` writes what is decided here. See exchange.md §2. A state has one
table of allowed moves; any other move is a defect and raises ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

ATTEMPT_CAP = 5
SUSPECT_WORKERS = 3  # so many workers failing one task make it failed early: the slice is suspect
REST_BASE_SECONDS = 30.0
REST_MAX_SECONDS = 3600.0


class TaskState(StrEnum):
    PENDING = "pending"
    LEASED = "leased"
    ACCEPTED = "accepted"
    MERGED = "merged"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"


class LeaseState(StrEnum):
    OPEN = "open"
    REPORTED = "reported"
    EXPIRED = "expired"
    RELEASED = "released"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"


class Ending(StrEnum):
    """Why a lease ended without an accepted report."""

    EXPIRED = "expired"
    RELEASED = "released"
    FAILED = "failed"  # the worker said so
    REJECTED = "rejected"  # a gate refused its report
    STALE = "stale"
    REVOKED = "revoked"  # its base became unusable
    COMPARED = "compared"  # its report is well, and merges nothing


T, L = TaskState, LeaseState

TASK_MOVES: Mapping[TaskState, frozenset[TaskState]] = MappingProxyType(
    {
        T.PENDING: frozenset({T.LEASED, T.ACCEPTED, T.CANCELLED, T.FAILED}),  # accepted: a late report
        T.LEASED: frozenset({T.PENDING, T.ACCEPTED, T.FAILED}),
        T.ACCEPTED: frozenset({T.MERGED, T.DISCARDED}),
        T.MERGED: frozenset({T.DISCARDED}),
        T.FAILED: frozenset(),
        T.CANCELLED: frozenset(),
        T.DISCARDED: frozenset(),
    }
)
LEASE_MOVES: Mapping[LeaseState, frozenset[LeaseState]] = MappingProxyType(
    {
        L.OPEN: frozenset({L.REPORTED, L.EXPIRED, L.RELEASED, L.SUPERSEDED, L.REVOKED}),
        L.EXPIRED: frozenset({L.REPORTED}),  # a late report still counts
        L.RELEASED: frozenset({L.REPORTED}),
        L.REVOKED: frozenset({L.REPORTED}),
        L.SUPERSEDED: frozenset({L.REPORTED}),
        L.REPORTED: frozenset(),
    }
)
ENDS: Mapping[Ending, LeaseState] = MappingProxyType(
    {
        Ending.EXPIRED: L.EXPIRED,
        Ending.RELEASED: L.RELEASED,
        Ending.FAILED: L.RELEASED,
        Ending.REJECTED: L.REPORTED,
        Ending.STALE: L.REPORTED,
        Ending.REVOKED: L.REVOKED,
        Ending.COMPARED: L.REPORTED,
    }
)


def check_task_move(old: TaskState, new: TaskState) -> None:
    if new not in TASK_MOVES[old]:
        raise ValueError(f"a task does not go from {old} to {new}")


def check_lease_move(old: LeaseState, new: LeaseState) -> None:
    if new not in LEASE_MOVES[old]:
        raise ValueError(f"a lease does not go from {old} to {new}")


@dataclass(frozen=True)
class TaskAfter:
    """What becomes of a task whose lease ended without an accepted report."""

    state: TaskState
    attempts: int
    failed_by: tuple[str, ...]


def task_after(ending: Ending, *, attempts: int, failed_by: tuple[str, ...], worker: str) -> TaskAfter:
    """Back to pending, whole; failed at the attempt cap. Only expiry and failure count as attempts."""
    if ending not in (Ending.EXPIRED, Ending.FAILED, Ending.REJECTED):
        return TaskAfter(T.PENDING, attempts, failed_by)
    attempts += 1
    if ending is not Ending.EXPIRED and worker not in failed_by:
        failed_by = (*failed_by, worker)
    failed = attempts >= ATTEMPT_CAP or len(failed_by) >= SUSPECT_WORKERS
    return TaskAfter(T.FAILED if failed else T.PENDING, attempts, failed_by)


def rest_seconds(failures: int) -> float:
    """How long a worker rests after `failures` in a row: the first is free, then 30 s doubling to an hour."""
    if failures < 2:
        return 0.0
    return min(REST_BASE_SECONDS * 2.0 ** min(failures - 2, 20), REST_MAX_SECONDS)


@dataclass(frozen=True)
class ClaimFacts:
    """What decides whether a worker may have a new lease."""

    ready: bool  # layout hash and formats agreed, calibrated
    drained: bool
    set_aside: bool  # by the operator: what it reports would not be merged
    rest_seconds: float
    run_running: bool  # ready or running, not paused or finished
    work_left: bool  # budget not yet covered by merged, accepted and leased work
    waits_for_merge: bool  # its report of this round is not merged yet, and the rule has rounds


class NoLease(StrEnum):
    """Why a worker gets no lease now."""

    NOT_READY = "not_ready"
    DRAINED = "drained"
    NOT_RUNNING = "not_running"
    SET_ASIDE = "set_aside"
    RESTING = "resting"
    MERGING = "merging"
    NO_WORK = "no_work"


def refuse_claim(facts: ClaimFacts) -> NoLease | None:
    """None: grant. Otherwise the first reason that holds."""
    if not facts.run_running:
        return NoLease.NOT_RUNNING
    if not facts.ready:
        return NoLease.NOT_READY
    if facts.drained:
        return NoLease.DRAINED
    if facts.set_aside:
        return NoLease.SET_ASIDE
    if facts.rest_seconds > 0:
        return NoLease.RESTING
    if facts.waits_for_merge:
        return NoLease.MERGING
    if not facts.work_left:
        return NoLease.NO_WORK
    return None


def renewed_deadline(*, deadline: float, last_deadline: float, now: float, seconds: float) -> float:
    """Progress moves a deadline to at least now + `seconds`, never back and never beyond the last one."""
    return max(deadline, min(now + seconds, last_deadline))
