"""The state machines of tasks and leases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.rounds.leases import (
    ATTEMPT_CAP,
    ENDS,
    LEASE_MOVES,
    TASK_MOVES,
    ClaimFacts,
    Ending,
    LeaseState,
    NoLease,
    TaskState,
    check_lease_move,
    check_task_move,
    refuse_claim,
    renewed_deadline,
    rest_seconds,
    task_after,
)

READY = ClaimFacts(
    ready=True,
    drained=False,
    set_aside=False,
    rest_seconds=0,
    run_running=True,
    work_left=True,
    waits_for_merge=False,
)


def test_every_state_has_its_row_and_final_states_stay() -> None:
    """Catches a state added without its moves."""
    assert set(TASK_MOVES) == set(TaskState)
    assert set(LEASE_MOVES) == set(LeaseState)
    for state in (TaskState.FAILED, TaskState.CANCELLED, TaskState.DISCARDED):
        assert not TASK_MOVES[state]
    assert not LEASE_MOVES[LeaseState.REPORTED]


def test_a_merged_task_is_never_leased_again() -> None:
    with pytest.raises(ValueError, match="does not go"):
        check_task_move(TaskState.MERGED, TaskState.LEASED)
    with pytest.raises(ValueError, match="does not go"):
        check_lease_move(LeaseState.REPORTED, LeaseState.OPEN)


@given(st.lists(st.tuples(st.sampled_from(list(Ending)), st.sampled_from(["a", "b", "c", "d"])), max_size=30))
def test_a_task_fails_at_the_cap_and_only_by_what_counts(endings: list[tuple[Ending, str]]) -> None:
    """Catches a cap that releases and staleness use up, and a task that is leased for ever."""
    attempts, failed_by = 0, ()
    counted, blamed = 0, set()
    for ending, worker in endings:
        after = task_after(ending, attempts=attempts, failed_by=failed_by, worker=worker)
        counted += ending in (Ending.EXPIRED, Ending.FAILED, Ending.REJECTED)
        if ending in (Ending.FAILED, Ending.REJECTED):
            blamed.add(worker)
        attempts, failed_by = after.attempts, after.failed_by
        assert attempts == counted
        assert set(failed_by) == blamed
        failing = ending in (Ending.EXPIRED, Ending.FAILED, Ending.REJECTED)
        assert (after.state is TaskState.FAILED) == (failing and (counted >= ATTEMPT_CAP or len(blamed) >= 3))
        check_lease_move(LeaseState.OPEN, ENDS[ending])
        if after.state is TaskState.FAILED:
            return


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ready": False}, NoLease.NOT_READY),
        ({"drained": True}, NoLease.DRAINED),
        ({"rest_seconds": 1.0}, NoLease.RESTING),
        ({"run_running": False}, NoLease.NOT_RUNNING),
        ({"work_left": False}, NoLease.NO_WORK),
        ({"waits_for_merge": True}, NoLease.MERGING),
        ({}, None),
    ],
)
def test_each_reason_alone_refuses_a_lease(change: dict[str, bool], reason: NoLease | None) -> None:
    """Catches a drain that is stored and shown but not looked at when claiming (Q6)."""
    facts = ClaimFacts(**{**vars(READY), **change})
    assert refuse_claim(facts) is reason


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e4))
def test_renewal_never_shortens_and_has_an_end(
    deadline: float, more: float, now: float, seconds: float
) -> None:
    """Catches a heartbeat that shortens a lease (Q8) or renews it for ever."""
    last = deadline + more
    new = renewed_deadline(deadline=deadline, last_deadline=last, now=now, seconds=seconds)
    assert deadline <= new <= last


def test_rest_grows_and_is_bounded() -> None:
    assert [rest_seconds(n) for n in (0, 1, 2, 3, 4, 100)] == [0, 0, 30, 60, 120, 3600]
