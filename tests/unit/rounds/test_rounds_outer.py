"""Outer optimizers against golden numbers, and the equalities that the design promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.rounds import outer
from bithaul.rounds.facts import Contribution, Flush, OpenLease, Past, RoundFacts
from bithaul.rounds.merging import MergeRule, awaited, fraction, quorum, smoothed_lag, step
from bithaul.rounds.rules import BufferedNesterov, DelayedNesterov, FedBuffSgd, rule_named

ONE = np.array([1.0])


def report(
    seq: int, *, tokens: int = 100, staleness: int = 0, worker: str = "", at: float = 8.0
) -> Contribution:
    return Contribution(seq, worker or f"w{seq}", tokens, staleness, at)


def drive(rule: MergeRule, rounds: list[list[float]], *, active: int) -> list[float]:
    """theta after each version, in one dimension from 0; every round's updates come in ledger order."""
    theta, momentum = np.zeros(1, np.float32), None
    seen, version = [], 1
    for updates in rounds:
        waiting = [report(i + 1) for i in range(len(updates))]
        while waiting:
            taken = rule.take(waiting)
            plan = rule.plan(taken, past=Past(version=version, active=active))
            values = [np.array([updates[c.seq - 1]]) for c in taken]
            moved = step(plan, theta, momentum, values)
            theta, momentum = moved.theta, moved.momentum
            waiting = [c for c in waiting if c not in taken]
            seen.append(float(theta[0]))
            version += 1
    return seen


def test_nesterov_against_golden_numbers() -> None:
    """m = mu m + D; theta -= eta (D + mu m). Catches heavy-ball in its place and a lost first momentum."""
    rule = rule_named("sync", {"eta": 0.7, "mu": 0.9})
    assert drive(rule, [[1.0]] * 3, active=1) == pytest.approx([-1.33, -3.227, -5.6343], rel=1e-6)


def test_momentum_per_push_is_what_the_design_warns_of() -> None:
    """Four equal deltas in a row: 12.1 g with momentum on each, 1.9 g as one step (exchange.md, §10)."""
    each = drive(rule_named("sync", {"eta": 1, "mu": 0.9}), [[1.0]] * 4, active=1)
    together = drive(rule_named("sync", {"eta": 1, "mu": 0.9}), [[1.0] * 4], active=4)
    assert each[-1] == pytest.approx(-12.1441, rel=1e-5)
    assert together[-1] == pytest.approx(-1.9, rel=1e-6)


@pytest.mark.parametrize(("parts", "moved"), [(1, 7.79), (2, 7.89), (4, 7.94), (8, 7.97)])
def test_a_fraction_of_a_round_is_a_fraction_of_a_step(parts: int, moved: float) -> None:
    """rho = 1, 1/2, 1/4, 1/8 over thirty rounds' worth: the numbers of exchange.md, §5.

    Catches mu or eta that is not taken down with the fraction.
    """
    theta, momentum = np.zeros(1, np.float32), None
    rho = 1 / parts
    number = outer.nesterov(eta=0.7 * rho, mu=0.9**rho, rho=rho)
    for _ in range(30 * parts):
        theta, momentum, _ = outer.apply(number, theta, momentum, np.array([0.05]))
    assert -theta[0] == pytest.approx(moved, abs=0.006)


@pytest.mark.parametrize(
    "numbers",
    [
        outer.plain(1.0),
        outer.plain(0.37),
        outer.nesterov(eta=0.7, mu=0.9),
        outer.nesterov(eta=0.21, mu=0.97, rho=0.3),
        outer.delayed_nesterov(eta=0.7, mu=0.9, buffer=3, place=0),
        outer.delayed_nesterov(eta=0.7, mu=0.9, buffer=3, place=2),
    ],
)
def test_the_compiled_step_is_the_written_one_to_the_bit(numbers: outer.OuterStep) -> None:
    """Against the formula in numpy. Catches a product and a sum that a compiler rounds once: other machines
    would make other weights of the same updates."""
    random = np.random.default_rng(0)
    theta, momentum = (random.standard_normal(10_007).astype(np.float32) for _ in range(2))
    combined = random.standard_normal(10_007)
    given_ = combined.copy()
    moved = outer.apply(numbers, theta, momentum, combined)
    new, new_momentum = moved.theta, moved.momentum
    assert np.array_equal(combined, given_)
    if not numbers.carries:
        assert new_momentum is None
        expected = theta - numbers.direct * numbers.eta * combined
    else:
        carried = (numbers.fold * combined + numbers.keep * momentum.astype(np.float64)).astype(np.float32)
        np.testing.assert_array_equal(new_momentum, carried)
        move = numbers.direct * combined
        if numbers.look:
            move = move + numbers.mu * carried.astype(np.float64)
        expected = theta - numbers.eta * move
    np.testing.assert_array_equal(new, expected.astype(np.float32))
    far = float(((new.astype(np.float64) - theta) ** 2).sum())
    assert moved.square == pytest.approx(far, rel=1e-12)


def test_delayed_nesterov_against_golden_numbers() -> None:
    """N = 2, eta 0.5, mu 0.9: pushes move by u / 4; the second also by 0.45 m, m the window's mean."""
    rule = DelayedNesterov(eta=0.5, mu=0.9, buffer=2)
    seen = drive(rule, [[1.0, 3.0], [1.0, 1.0]], active=2)
    m1 = 2.0
    m2 = 0.9 * m1 + 1.0
    expected = np.cumsum([-0.25, -0.75 - 0.45 * m1, -0.25, -0.25 - 0.45 * m2])
    assert seen == pytest.approx(list(expected), rel=1e-6)
    assert seen[1] == pytest.approx(-1.9)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=6))
def test_delayed_nesterov_of_one_is_plain_nesterov(updates: list[float]) -> None:
    """The equality of exchange.md, §6, to the bit."""
    plain = rule_named("sync", {"eta": 0.7, "mu": 0.9})
    assert drive(DelayedNesterov(buffer=1), [[u] for u in updates], active=1) == drive(
        plain, [[u] for u in updates], active=1
    )


def test_fedbuff_takes_full_buffers_in_order() -> None:
    rule = FedBuffSgd(eta=0.5, buffer=2)
    assert drive(rule, [[1.0, 3.0, 5.0]], active=3) == pytest.approx([-1.0, -3.5])


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_buffered_equals_sync_diloco_when_everybody_reports(workers: int, rounds: int, seed: int) -> None:
    """Bit for bit, over several rounds, momentum included. Catches any tweak that is not neutral."""
    random = np.random.default_rng(seed)
    buffered, sync = rule_named("buffered_nesterov"), rule_named("sync_diloco")
    thetas = [np.ones(33, np.float32)] * 2
    momenta: list[np.ndarray | None] = [None, None]
    flushes: list[Flush] = []
    sizes: list[int] = []
    for version in range(1, rounds + 1):
        given_ = [
            replace(report(i + 1, tokens=int(random.integers(900, 1100))), norm=float(random.uniform(1, 5)))
            for i in range(workers)
        ]
        updates = [random.standard_normal(33).astype(np.float32) for _ in given_]
        facts = facts_of(given_, now=8.0, leases=[], active=workers)
        assert buffered.due(facts)
        assert sync.due(facts)
        past = Past(version, workers, flushes[-8:], sizes[-64:])
        for i, rule in enumerate((buffered, sync)):
            plan = rule.plan(rule.take(given_), past=past)
            thetas[i], momenta[i], _ = step(plan, thetas[i], momenta[i], updates)
        flushes.append(Flush(sum(c.tokens for c in given_), 0.0))
        sizes += [c.tokens for c in given_]
        assert np.array_equal(thetas[0], thetas[1])
        assert momenta[0] is not None
        assert momenta[1] is not None
        assert np.array_equal(momenta[0], momenta[1])


def facts_of(given_: list[Contribution], *, now: float, leases: list[OpenLease], active: int) -> RoundFacts:
    """A round of 100 s whose tick is at 100."""
    workers = frozenset(c.worker for c in given_)
    return RoundFacts(now, 100.0, 100.0, given_, leases, workers, True, False, active)


def test_buffered_waits_for_nobody() -> None:
    """Early when all are in, at the grace with a quorum, at half a round with anything. Catches a barrier."""
    rule = BufferedNesterov()
    late = [OpenLease("w9", True, 100.0)]
    three = [report(i) for i in (1, 2, 3)]
    assert rule.due(facts_of(three, now=60.0, leases=[], active=4)), "nobody is left to wait for"
    assert not rule.due(facts_of(three, now=109.0, leases=late, active=4))
    assert rule.due(facts_of(three, now=110.0, leases=late, active=4)), "a tenth of the round is the grace"
    assert not rule.due(facts_of(three, now=149.0, leases=late, active=40)), "too few for a full step"
    assert rule.due(facts_of(three, now=150.0, leases=late, active=40))
    assert not rule.due(facts_of([], now=1e6, leases=[], active=4))
    assert not rule.due(
        facts_of([report(1, worker="w1"), report(2, worker="w1")], now=110.0, leases=late, active=4)
    )


def test_a_worker_that_was_quick_gets_more_work_unless_the_tick_is_near() -> None:
    rule = BufferedNesterov()
    assert not rule.waits(left=20.0, length=100.0)
    assert rule.waits(left=14.0, length=100.0)
    assert rule_named("sync").waits(left=99.0, length=100.0)
    assert not rule_named("fedbuff_sgd").waits(left=0.0, length=100.0)


def test_fedbuff_is_emptied_at_the_end() -> None:
    """Catches updates that are accepted and never merged because the buffer does not fill any more."""
    rule = FedBuffSgd(buffer=8)
    few = [report(1), report(2)]
    facts = facts_of(few, now=60.0, leases=[], active=4)
    assert not rule.due(facts)
    assert rule.due(replace(facts, work_left=False))
    assert not rule.due(replace(facts, work_left=False, leases=[OpenLease("w9", True, 100.0)]))
    assert rule.due(facts_of([report(i) for i in range(8)], now=1.0, leases=[], active=4))


def test_lag_takes_momentum_and_rate_down() -> None:
    """mu 0.9 at lag 0, 0.6 at 1, 0 at 3; eta over 1 + 0.5 lag. Catches momentum that ignores delay."""
    rule = BufferedNesterov(eta=0.7)
    found = []
    for lag in (0, 1, 3):
        plan = rule.plan([report(1, staleness=lag)], past=Past(active=1))
        found.append((plan.outer.mu, plan.outer.eta))
    assert found == [
        pytest.approx((0.9, 0.7)),
        pytest.approx((0.6, 0.7 / 1.5)),
        pytest.approx((0.0, 0.7 / 2.5), abs=1e-12),
    ]


def test_the_lag_is_smoothed_over_eight_flushes() -> None:
    past = Past(flushes=[Flush(100, 5.0)] + [Flush(100, 0.0)] * 7)
    assert smoothed_lag([report(1, staleness=1)], past) == pytest.approx(1 / 8)
    assert smoothed_lag([report(1, staleness=1)], Past()) == 1.0


def test_few_reports_are_a_fraction_of_a_step() -> None:
    """rho = tokens / (quorum x median): two of ten workers make a third of a full step."""
    past = Past(active=10, reports=[100] * 20)
    assert fraction([report(1), report(2)], past) == pytest.approx(2 / 6)
    assert fraction([report(i) for i in range(10)], past) == 1.0
    assert fraction([report(1, tokens=10)], Past(active=1, reports=[100] * 9)) == 1.0, "everybody is in"
    assert [quorum(n) for n in (0, 1, 2, 10, 1000)] == [1, 1, 2, 6, 32]


def test_eta_grows_with_effective_contributors() -> None:
    found = [outer.eta_for(m) for m in (1.0, 2.4, 3.0, 5.0, 7.4, 8.0, 300.0)]
    assert found == [0.4, 0.4, 0.6, 0.7, 0.7, 0.8, 0.8]
    assert outer.effective_contributors([0.25] * 4) == pytest.approx(4.0)
    assert outer.effective_contributors([1.0, 0.0]) == pytest.approx(1.0)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 3))
def test_a_step_never_moves_further_than_a_full_one(reports: int, active: int, lag: float) -> None:
    """Catches a fraction or lag rule that amplifies."""
    rule = BufferedNesterov()
    taken = [report(i, staleness=round(lag)) for i in range(reports)]
    plan = rule.plan(taken, past=Past(active=active, reports=[100] * 8))
    full = rule_named("sync_diloco").plan(taken, past=Past())
    for number, limit in ((plan.outer.eta, full.outer.eta), (plan.outer.fold, 1.0)):
        assert 0 < number <= limit
    assert awaited(facts_of(taken, now=1.0, leases=[], active=active)) == set()
