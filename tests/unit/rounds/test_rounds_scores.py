"""The loss score's decisions: who is looked at, on which examples, and what it does to a weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.rounds.scores import (
    EAGER,
    FEWEST,
    FULL,
    LEAST,
    MEMORY,
    PARTS,
    SHARE,
    TOKENS,
    Fit,
    drawn,
    rest_after,
    sample,
    score,
)
from bithaul.rounds.trust import Standing, Trust, pin, restore, strike

FALLS = st.lists(st.floats(-2, 2), min_size=PARTS, max_size=PARTS)
VALUES = st.floats(-1, 1)


def after(values: list[float]) -> Fit:
    fit = Fit()
    for value in values:
        fit = fit.with_score(value)
    return fit


# -- who is looked at


@pytest.mark.parametrize(
    ("fit", "share"),
    [
        (Fit(), EAGER),
        (Fit(1.0, FEWEST - 1), EAGER),
        (Fit(1.0, FEWEST), SHARE),
        (Fit(FULL, 500), SHARE),
        (Fit(0.9 * FULL, 500), EAGER),  # so that it can get out of it
    ],
)
def test_shares(fit: Fit, share: float) -> None:
    """Catches a newcomer that is hardly looked at, a steady worker that always is, a way out that is shut."""
    assert sum(drawn((i + 0.5) / 10_000, fit) for i in range(10_000)) == 10_000 * share


@given(st.floats(0, 1e4))
def test_scores_take_a_twentieth_of_the_time(seconds: float) -> None:
    assert 0.05 * (seconds + rest_after(seconds)) == pytest.approx(seconds)


# -- on which examples


@given(
    st.integers(20, 400),
    st.integers(1, 60),
    st.sets(st.integers(0, 399), min_size=1),
    st.integers(0, 2**64 - 1),
)
def test_own_examples_were_used_and_others_were_not(
    count: int, tokens: int, used: set[int], seed: int
) -> None:
    """Catches a sample of what the task was not given, an example twice, and samples of unequal length."""
    used = {number for number in used if number < count} or {0}
    lengths = np.random.default_rng(count).integers(1, tokens + 1, count)
    found = sample(used, lengths, seed=seed)
    if found is None:
        return
    own, other = ([number for part in parts for number in part] for parts in (found.own, found.other))
    assert set(own) <= used
    assert not set(other) & used
    assert (len(set(own)), len(set(other))) == (len(own), len(other))
    assert len(found.own) == len(found.other) == PARTS
    assert all([*found.own, *found.other])
    sums = [int(lengths[numbers].sum()) for numbers in (own, other)]
    assert max(sums) <= TOKENS
    most = min(TOKENS, *(int(lengths[list(rest)].sum()) for rest in (used, set(range(count)) - used)))
    assert min(sums) > most - 2 * tokens, "as many as there are, and as many of both"


def test_all_that_is_needed_is_there_for_a_usual_task() -> None:
    """Catches a sample that is empty for ever."""
    found = sample(range(64, 128), np.full(1000, 24), seed=1)
    assert found is not None
    assert sum(map(len, found.own)) == sum(map(len, found.other)) == 64


def test_a_task_that_leaves_nothing_is_not_looked_at() -> None:
    lengths = np.full(100, 10)
    assert sample(range(100), lengths, seed=1) is None
    assert sample(range(100 - PARTS + 1), lengths, seed=1) is None
    assert sample(range(PARTS - 1), lengths, seed=1) is None
    assert sample(range(100 - PARTS), lengths, seed=1) is not None


def test_examples_without_targets_are_left_out() -> None:
    lengths = np.array([0, 5] * 40)
    found = sample(range(40), lengths, seed=1)
    assert found is not None
    assert all(number % 2 for part in [*found.own, *found.other] for number in part)


def test_the_seed_draws_the_sample() -> None:
    """Catches a sample that a worker could know before it trains."""
    lengths = np.full(5000, 24)
    found = [sample(range(2000), lengths, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


# -- what is found


def test_golden_scores() -> None:
    """Falls as they were measured (docs/lab/0028): an honest update of 8 steps, a copy, a flipped one."""
    other = [0.01, -0.02, 0.0, 0.03, -0.01, -0.03, 0.02, 0.01]
    honest = score([0.40, 0.35, 0.45, 0.38, 0.41, 0.42, 0.36, 0.44], other)
    copied = score([0.02, -0.03, 0.01, 0.0, -0.01, 0.02, 0.01, -0.02], other)
    flipped = score([-2.0, -2.1, -1.9, -2.2, -1.8, -2.0, -2.1, -1.9], [-1.6 + f for f in other])
    assert honest is not None
    assert copied is not None
    assert flipped is not None
    assert (honest.own, honest.other, honest.value) == (pytest.approx(0.40125), pytest.approx(0.00125), 1.0)
    assert copied.value == pytest.approx(-0.04288, abs=1e-5)
    assert flipped.value == -1.0


def test_an_update_that_lowers_no_loss_proves_nothing() -> None:
    """Catches praise for what only harms its own examples less than others."""
    found = score([-0.10 + 0.01 * i for i in range(PARTS)], [-0.5 + 0.01 * i for i in range(PARTS)])
    assert found is not None
    assert found.value == 0.0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_no_score(broken: float) -> None:
    """Catches an average that is NaN from then on."""
    fine = [0.1 * i for i in range(PARTS)]
    assert score([broken, *fine[1:]], fine) is None
    assert score(fine, [broken, *fine[1:]]) is None


@given(FALLS, FALLS)
def test_a_score_lies_between_its_ends_and_has_the_sign_of_the_difference(
    own: list[float], other: list[float]
) -> None:
    found = score(own, other)
    assert found is not None
    assert -1.0 <= found.value <= 1.0
    if found.value:
        assert (found.value > 0) == (found.own > found.other)
    if found.value > 0:
        assert found.own > 0


@given(FALLS, FALLS, st.floats(0.01, 100))
def test_late_in_a_run_where_all_falls_are_small_the_scale_is_the_same(
    own: list[float], other: list[float], times: float
) -> None:
    """Catches a score in nats, which would call every late update bad."""
    here, there = score(own, other), score([times * f for f in own], [times * f for f in other])
    assert here is not None
    assert there is not None
    if min(np.var(own), np.var(other)) > 1e-6 and abs(here.own) > 1e-6:
        assert there.value == pytest.approx(here.value, rel=1e-6, abs=1e-9)


def test_falls_that_are_all_alike() -> None:
    """Catches a division by zero."""
    found = [score([a] * PARTS, [b] * PARTS) for a, b in ((0.5, 0.1), (0.1, 0.5), (0.0, 0.0))]
    assert [one.value for one in found if one is not None] == [1.0, -1.0, 0.0]


# -- what it does to a weight


@given(st.lists(VALUES, min_size=1, max_size=40))
def test_the_average_is_the_mean_at_first_and_moves_then(values: list[float]) -> None:
    fit = after(values)
    assert fit.count == len(values)
    assert min(values) - 1e-9 <= fit.average <= max(values) + 1e-9
    if len(values) <= MEMORY:
        assert fit.average == pytest.approx(sum(values) / len(values), abs=1e-9)


@given(st.lists(VALUES, max_size=40))
def test_the_factor_is_bounded_and_says_why_and_what_leads_out(values: list[float]) -> None:
    fit = after(values)
    assert LEAST <= fit.factor <= 1.0
    assert bool(fit.why) == bool(fit.way_out) == (fit.factor < 1.0)
    if len(values) < FEWEST:
        assert fit.factor == 1.0


def test_one_honest_bad_draw_does_no_harm() -> None:
    """Catches a factor that follows a single score: at once, or after a long good time."""
    for before in range(60):
        assert after([1.0] * before + [-1.0]).factor == 1.0
        assert after([1.0] * before + [-1.0] + [1.0] * 5).factor == 1.0


def test_who_copies_from_the_beginning_weighs_less_and_gets_out_by_work() -> None:
    """Catches a gate that finds nothing, and one that never forgets."""
    copies = [0.3, -0.2, 0.1, -0.3, 0.0, 0.2]
    fit = after(copies)
    assert fit.factor == pytest.approx(LEAST + (1 - LEAST) * (0.1 / 6) / FULL)
    assert "hardly more than on others (average score 0.02" in fit.why
    needed = 0
    while fit.factor < 1.0:
        fit, needed = fit.with_score(1.0), needed + 1
    assert needed == 6


def test_the_factor_is_one_on_the_weight_beside_standing_and_score() -> None:
    low = Fit(0.0, FEWEST)
    steady = Trust(Standing.STEADY, score=0.8, to_go=0, reason="", fit=low)
    assert steady.weight(0.0) == pytest.approx(0.8 * LEAST)
    assert Trust(fit=low).weight(0.0) == pytest.approx(0.5 * LEAST)
    assert "average score 0.00" in steady.why
    assert "each accepted report returns a little; updates that are trained" in steady.way_out
    struck = strike(steady, "a reason", now=0.0)
    assert struck.fit == low
    assert struck.why.startswith("a reason; its updates lower the loss")
    fine = Trust(Standing.STEADY, to_go=0, reason="", fit=Fit(1.0, 50))
    assert (fine.weight(0.0), fine.why, fine.way_out) == (1.0, "", "")


def test_the_operator_is_above_it() -> None:
    """Catches a pinned machine that weighs less, and a restored one that is judged by what was before."""
    low = Trust(Standing.STEADY, to_go=0, fit=Fit(-1.0, 50), pinned=True, reason="pinned by the operator")
    assert (low.weight(0.0), low.why, low.way_out) == (1.0, "pinned by the operator", "")
    assert pin().fit == restore(low, "restored").fit == Fit()
