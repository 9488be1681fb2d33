"""Task sizes and lease times."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.rounds.sizing import (
    FIRST_SPEED,
    LONGEST_LEASE,
    PROOF,
    SLOWEST,
    Sizing,
    enough,
    lease_seconds,
    next_speed,
    present_seconds,
    progress_share,
    retry_seconds,
    speed_of,
    task_size,
)

PLAIN = Sizing(
    speed=1000,
    fleet_speed=2000,
    round_seconds=8,
    seconds_left=8,
    overhead_seconds=0,
    remaining_tokens=math.inf,
    remaining_seconds=math.inf,
    tokens_per_example=20,
    batch_examples=16,
)


def test_a_task_is_speed_times_time_in_whole_batches() -> None:
    """Catches a size that is stored, shown and never used (C1), and tokens taken for examples."""
    size = task_size(PLAIN)
    assert size.examples == 25 * 16
    assert size.tokens == 8000
    assert size.seconds == 8
    assert size.soft_stop_seconds == 12


@given(
    st.floats(0.1, 1e6),
    st.floats(0, 100),
    st.floats(0, 1e9),
    st.floats(0, 1e5),
    st.floats(1, 500),
    st.integers(1, 512),
)
def test_any_facts_give_whole_batches_and_at_least_one(
    speed: float, left: float, tokens: float, seconds: float, per_example: float, batch: int
) -> None:
    """Catches tasks of nothing, which a worker would fetch for ever."""
    size = task_size(
        replace(
            PLAIN,
            speed=speed,
            seconds_left=left,
            remaining_tokens=tokens,
            remaining_seconds=seconds,
            tokens_per_example=per_example,
            batch_examples=batch,
        )
    )
    assert size.examples >= batch
    assert size.examples % batch == 0
    assert size.soft_stop_seconds > 0


def test_late_in_a_round_a_task_aims_at_the_next_tick() -> None:
    assert task_size(replace(PLAIN, seconds_left=4)).seconds == pytest.approx(4, abs=0.2)
    assert task_size(replace(PLAIN, seconds_left=1)).seconds == pytest.approx(9, abs=0.2)


def test_measuring_the_base_shortens_the_task() -> None:
    """Catches a round in which everybody waits for the worker that measures."""
    assert task_size(replace(PLAIN, overhead_seconds=2)).seconds == pytest.approx(6, abs=0.2)


def test_the_rest_of_the_budget_is_shared_by_speed() -> None:
    """Catches a last round that one worker does alone while the others idle."""
    size = task_size(replace(PLAIN, remaining_tokens=4000, speed=1000, fleet_speed=4000))
    assert size.tokens == pytest.approx(1000, abs=160)


def test_a_lease_outlives_its_work_whatever_the_worker_claims() -> None:
    """Catches 60-second leases after one absurd speed report (Q10)."""
    for speed in (1.0, 1e9):
        tokens = 8000.0
        seconds = lease_seconds(
            task_seconds=600, duration=tokens / speed, weights_bytes=28_000_000, payload_bytes=7_000_000
        )
        assert seconds >= 3 * 600
    slow_line = lease_seconds(
        task_seconds=8, duration=8, weights_bytes=470_000_000, payload_bytes=118_000_000
    )
    assert slow_line > 200


def test_speed_follows_finished_work_and_is_bounded_by_calibration() -> None:
    assert next_speed(0, tokens=1000, seconds=1, elapsed=1, calibrated=0) == 1000
    assert next_speed(1000, tokens=2000, seconds=1, elapsed=2, calibrated=5000) == 1400
    assert next_speed(0, tokens=10**9, seconds=1, elapsed=1, calibrated=500) == 1500
    assert next_speed(700, tokens=5, seconds=0, elapsed=1, calibrated=500) == 700
    assert speed_of(measured=0, calibrated=300) == 300
    assert speed_of(measured=200, calibrated=300) == 200


def test_a_speed_is_believed_as_far_as_the_clock_here_saw_it() -> None:
    """Catches: the rest of a run leased to who says a number; a lease of a billion years."""
    assert speed_of(measured=0, calibrated=1e308) == FIRST_SPEED
    assert speed_of(measured=0, calibrated=5e-324) == speed_of(measured=1e-300, calibrated=9) == SLOWEST
    assert next_speed(0, tokens=1000, seconds=1e-9, elapsed=20, calibrated=1e300) == PROOF * 1000 / 20
    assert next_speed(0, tokens=1000, seconds=4, elapsed=20, calibrated=1e300) == 250, (
        "transfers took the rest"
    )
    longest = lease_seconds(
        task_seconds=600, duration=1e18, weights_bytes=28_000_000, payload_bytes=7_000_000
    )
    assert longest == LONGEST_LEASE


def test_half_a_batch_is_not_worth_another_round() -> None:
    assert enough(covered_tokens=9_900, budget_tokens=10_000, batch_tokens=320)
    assert not enough(covered_tokens=9_800, budget_tokens=10_000, batch_tokens=320)
    assert not enough(covered_tokens=0, budget_tokens=100, batch_tokens=320), "a tiny budget still trains"


def test_progress_is_the_larger_share() -> None:
    assert progress_share(tokens=50, budget_tokens=100, seconds=90, budget_seconds=100) == 0.9
    assert progress_share(tokens=500, budget_tokens=100, seconds=0, budget_seconds=None) == 1.0
    assert progress_share(tokens=5, budget_tokens=None, seconds=0, budget_seconds=None) == 0.0


def test_a_fleet_that_waits_for_a_long_round_does_not_ask_ten_times_a_second() -> None:
    """Short rounds keep their quick retries; long ones are asked for ever more often towards the tick."""
    assert retry_seconds(0.1, length=8.0) == 0.1
    assert retry_seconds(0.1, length=8.0, left=8.0) == 0.1
    waits = [retry_seconds(0.1, length=600.0, left=left) for left in (500.0, 100.0, 30.0, 0.0, -100.0)]
    assert waits == pytest.approx([59.2, 50.0, 15.0, 6.0, 25.0])


@given(st.floats(1, 3600), st.floats(-3600, 3600))
def test_who_asks_again_is_still_awaited(length: float, left: float) -> None:
    """Catches a round that is closed without a worker because it was told to wait too long."""
    for usual in (0.1, 0.25):
        assert retry_seconds(usual, length=length, left=left) < 0.8 * present_seconds(length)
