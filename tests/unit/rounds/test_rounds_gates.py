"""Gates, trust and rollback: honest mixed machines pass, poison does not, and every state has a way out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.rounds import trust
from bithaul.rounds.gates import (
    Seen,
    agreements,
    audit_rate,
    audit_strike,
    is_copy,
    largest,
    largest_of,
    norm_gate,
    speed_gate,
    usual_size,
)
from bithaul.rounds.rollback import MadeVersion, Measured, MergedReport, alarm, plan_rollback
from bithaul.rounds.trust import Standing, Trust

USUAL = [Seen(f"w{i % 8}", 1.0, 1) for i in range(16)]


@pytest.mark.parametrize(
    ("norm", "steps", "clip"),
    [(1.9, 1, 1.0), (4.0, 1, 0.5), (9.9, 1, 2 / 9.9), (10.1, 1, 0.0), (9.9, 25, 1.0), (math.nan, 1, 0.0)],
)
def test_the_norm_gate_clips_then_refuses(norm: float, steps: int, clip: float) -> None:
    """Over 2x clipped to 2x, over 10x refused, per root of the steps."""
    verdict = norm_gate(Seen("x", norm, steps), USUAL)
    assert verdict.clip == pytest.approx(clip)
    assert verdict.refused == (clip == 0.0)
    assert bool(verdict.reason) == (clip != 1.0)


def test_before_eight_there_is_only_the_ceiling() -> None:
    few = USUAL[:7]
    assert norm_gate(Seen("x", 1e6, 1), few).clip == 1.0
    assert norm_gate(Seen("x", 1e6, 1), few, ceiling=10.0).refused
    assert usual_size(USUAL[:8]) == 1.0


def test_one_busy_worker_does_not_set_the_median() -> None:
    """Catches a median that a poisoner moves by sending often."""
    flood = [*USUAL, *[Seen("x", 100.0, 1)] * 500]
    assert usual_size(flood) == 1.0


def test_speed_beyond_what_the_machine_can_do_is_not_credited() -> None:
    assert speed_gate(tokens=2_900, seconds=10.0, calibrated=100.0).tokens == 2_900
    absurd = speed_gate(tokens=727_000, seconds=1.0, calibrated=100.0)
    assert (absurd.tokens, absurd.strike) == (300, True)
    assert not speed_gate(tokens=727_000, seconds=1.0, calibrated=0.0).strike


def test_a_copy_is_seen_and_two_honest_updates_are_not() -> None:
    random = np.random.default_rng(0)
    mine = random.standard_normal(100_000).astype(np.float32)
    noisy = mine + 0.1 * random.standard_normal(100_000).astype(np.float32)
    other = random.standard_normal(100_000).astype(np.float32)
    assert is_copy(largest(mine), largest(noisy.astype(np.float32)))
    assert not is_copy(largest(mine), largest(other))


def test_audits() -> None:
    assert not audit_strike([0.99, 0.5])
    assert not audit_strike([0.5, 0.99, 0.5])
    assert audit_strike([0.99, 0.5, 0.6])
    assert [audit_rate(n) for n in (0, 1, 10, 1000)] == [1.0, 1.0, 0.1, 0.02]


def test_three_reports_end_the_probation() -> None:
    now, state = 0.0, Trust()
    weights = [state.weight(now)]
    for _ in range(4):
        state = trust.accepted(state, now=now)
        weights.append(state.weight(now))
    assert weights == [0.5, 0.5, 0.5, 1.0, 1.0]
    assert state.standing is Standing.STEADY
    struck = trust.strike(state, "norm", now=now)
    assert (struck.standing, struck.score, struck.reason) == (Standing.PROBATION, 0.75, "norm")
    assert "3 more" in struck.way_out


def test_rest_ends_by_itself_and_setting_aside_does_not() -> None:
    state = trust.rest(Trust(), "two failed tasks", until=100.0)
    assert state.weight(99.0) == 0.0
    assert state.weight(100.0) == 0.5
    aside = trust.set_aside(Trust(), "by the operator")
    assert trust.accepted(aside, now=1e9).weight(1e9) == 0.0
    assert trust.restore(aside, "by the operator").weight(0.0) == 0.5
    assert trust.strike(trust.pin(), "norm", now=0.0).weight(0.0) == 1.0


@given(st.lists(st.sampled_from(["accepted", "strike", "rest", "aside", "restore"]), max_size=40))
def test_whatever_happens_the_weight_is_a_share_and_has_a_way_out(events: list[str]) -> None:
    state, now = Trust(), 0.0
    for event in events:
        now += 10.0
        match event:
            case "accepted":
                state = trust.accepted(state, now=now)
            case "strike":
                state = trust.strike(state, "r", now=now)
            case "rest":
                state = trust.rest(state, "r", until=now + 15.0)
            case "aside":
                state = trust.set_aside(state, "r")
            case _:
                state = trust.restore(state, "r")
        assert 0.0 <= state.weight(now) <= 1.0
        assert state.weight(now) == 1.0 or state.way_out


GOOD = [Measured(i, 3.0 - 0.02 * i + 0.005 * (-1) ** i) for i in range(1, 21)]


def test_two_bad_versions_raise_the_alarm_and_one_does_not() -> None:
    """Catches an alarm by a single noisy probe, and a bad version that becomes the new normal."""
    assert alarm(GOOD) is None
    assert alarm([*GOOD, Measured(21, 9.0)]) is None
    assert alarm([*GOOD, Measured(21, 9.0), Measured(22, math.nan)]) == 20
    assert alarm([*GOOD, Measured(21, 9.0), Measured(22, 2.59)]) is None
    assert alarm([Measured(1, 3.0), Measured(2, 9.0), Measured(3, 9.0)]) is None, "too little is known"


def test_flat_losses_are_no_alarm() -> None:
    """Catches a sigma of zero."""
    assert alarm([Measured(i, 2.0) for i in range(20)] + [Measured(20, 2.001), Measured(21, 2.001)]) is None


def test_a_rollback_is_a_new_version_and_gives_the_slices_back() -> None:
    made = [MadeVersion(v, 0, 100 * v) for v in (1, 2, 3, 4)]
    reports = [
        MergedReport(1, 11, "a", 2, 1),
        MergedReport(2, 12, "b", 3, 2),
        MergedReport(3, 13, "c", 4, 3),
        MergedReport(4, 14, "d", 0, 4),
        MergedReport(5, 15, "e", 0, 2),
    ]
    plan = plan_rollback(2, made, reports, automatic=True, automatic_before=False)
    assert (plan.version, plan.lineage, plan.tokens_total) == (5, 1, 200)
    assert plan.discarded_tasks == (12, 13, 14), "merged since, or trained on what is given up"
    assert plan.on_probation == ("b", "c", "d")
    assert not plan.pause
    assert plan_rollback(2, made, reports, automatic=True, automatic_before=True).pause
    for wrong in (4, 9):
        with pytest.raises(ValueError, match="no going back"):
            plan_rollback(wrong, made, reports, automatic=False, automatic_before=False)


def test_the_largest_of_a_sparse_update_are_those_of_the_vector() -> None:
    """A golden case with many values of one size: of those at the edge the first. Catches places of another
    piece, signs that count, and a choice that differs between two copies."""
    places = np.array([3, 8, 9, 20, 21, 40, 41, 77], np.int64)
    values = np.array([0.5, -2.0, 0.5, 2.0, -0.5, 0.25, 0.5, -3.0], np.float32)
    assert largest_of(places, values, 3).tolist() == [8, 20, 77]
    assert largest_of(places, values, 5).tolist() == [3, 8, 9, 20, 77]
    assert largest_of(places, values, 100).tolist() == places.tolist()
    assert largest_of(places[:0], values[:0]).size == 0
    vector = np.zeros(90, np.float32)
    vector[places] = values
    assert largest_of(places, values, 3).tolist() == largest(vector, 3).tolist()


def test_agreement_is_the_cosine_to_the_momentum_or_to_the_others() -> None:
    """Against vectors. Catches an update that is compared with itself, and one that swings all the others."""
    random = np.random.default_rng(4)
    way = random.standard_normal(50)
    updates = [way + 0.1 * random.standard_normal(50) for _ in range(3)] + [-10 * way]
    weights = [0.4, 0.3, 0.2, 0.1]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    def products(momentum: np.ndarray) -> np.ndarray:
        rows = np.stack([momentum, *updates])
        return rows @ rows.T

    wanted = [
        cosine(u, sum(w * v for j, (w, v) in enumerate(zip(weights, updates, strict=True)) if j != i))
        for i, u in enumerate(updates)
    ]
    assert agreements(products(np.zeros(50)), weights) == pytest.approx(wanted)
    momentum = random.standard_normal(50)
    assert agreements(products(momentum), weights) == pytest.approx([cosine(u, momentum) for u in updates])
    assert agreements(np.diag([0.0, 4.0]), [1.0]) == [None]
    assert agreements(np.zeros((3, 3)), [0.5, 0.5]) == [None, None]
