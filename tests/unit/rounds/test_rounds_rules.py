"""Merge rules: when, what and by how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.errors import InvalidConfig, UnknownName
from bithaul.rounds.facts import Contribution, Glance, OpenLease, Past, RoundFacts
from bithaul.rounds.merging import MergeRule, last_aim, step, weights_of
from bithaul.rounds.rules import RULES, StalenessSgd, Sync, rule_named


def given_by(
    worker: str, *, tokens: int = 100, staleness: int = 0, seq: int = 1, at: float = 8.0
) -> Contribution:
    return Contribution(seq, worker, tokens, staleness, at)


FACTS = RoundFacts(
    now=8.0,
    tick=8.0,
    length=8.0,
    contributions=[given_by("a")],
    leases=[],
    workers=frozenset("ab"),
    work_left=True,
    paused=False,
)


def test_sync_waits_for_those_who_are_working_or_about_to() -> None:
    """Catches a barrier that leaves a worker behind."""
    rule = Sync()
    assert not rule.due(FACTS), "b is there and has not begun"
    assert not rule.due(replace(FACTS, leases=[OpenLease("b", True, 9.0)]))
    assert rule.due(replace(FACTS, contributions=[given_by("a"), given_by("b", seq=2)]))


def test_sync_does_not_wait_in_vain() -> None:
    """Catches waiting for the dead, for the drained, for stragglers, and at the end of the budget."""
    rule = Sync()
    assert rule.due(replace(FACTS, workers=frozenset("a")))
    assert rule.due(replace(FACTS, work_left=False))
    assert rule.due(replace(FACTS, paused=True))
    assert rule.due(replace(FACTS, leases=[OpenLease("b", False, 5.0)])), "an older base is late anyway"
    assert rule.due(replace(FACTS, leases=[OpenLease("b", True, 16.0)])), "aimed at the next tick"
    assert not rule.due(replace(FACTS, contributions=[]))


def test_sync_has_a_deadline() -> None:
    """Catches a round that a hung worker holds for ever."""
    waiting = replace(FACTS, leases=[OpenLease("b", True, 9.0)])
    assert not Sync().due(replace(waiting, now=19.9))
    assert Sync().due(replace(waiting, now=20.1))
    quick = replace(waiting, length=0.1, leases=[OpenLease("b", True, 8.0)])
    assert not Sync().due(replace(quick, now=9.9)), "two seconds at least"


def test_plain_average_weighs_by_tokens_and_lag() -> None:
    """u = start - end: theta must move to where the workers went, by their share."""
    theta = np.array([1.0, 2.0], np.float32)
    contributions = [given_by("a", tokens=300), given_by("b", tokens=100, staleness=3, seq=2)]
    assert weights_of(contributions) == pytest.approx([300 / 350, 50 / 350])
    plan = Sync().plan(contributions, past=Past())
    new, momentum, _ = step(plan, theta, None, [np.array([1.0, 0.0]), np.array([0.0, 7.0])])
    assert momentum is None
    assert new == pytest.approx([1 - 300 / 350, 2 - 1.0])


def test_staleness_sgd_is_the_first_designs_formula() -> None:
    rule = StalenessSgd(lr=0.7, alpha=0.5)
    waiting = [given_by("b", seq=2), given_by("a", seq=1, staleness=2)]
    taken = rule.take(waiting)
    assert [c.seq for c in taken] == [1], "one version per report, in ledger order"
    new, _, _ = step(rule.plan(taken, past=Past()), np.array([1.0], np.float32), None, [np.array([1.0])])
    assert new == pytest.approx([1.0 - 0.35])
    assert rule.due(replace(FACTS, leases=[OpenLease("b", True, 9.0)]))


EVERY = [rule_named(name) for name in RULES] + [rule_named("sync", {"eta": 0.7, "mu": 0.9})]


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: r.name)
@given(st.integers(1, 4), st.integers(1, 50), st.integers(0, 99))
def test_slicing_changes_no_bit(rule: MergeRule, workers: int, border: int, seed: int) -> None:
    """Catches a result that depends on the merger's memory settings."""
    random = np.random.default_rng(seed)
    theta = random.standard_normal(51).astype(np.float32)
    momentum = random.standard_normal(51).astype(np.float32) if rule.momentum else None
    given_ = [given_by("abcd"[i], seq=i + 1, tokens=100 + i) for i in range(workers)]
    taken = rule.take(given_)
    updates = [random.standard_normal(51).astype(np.float32) for _ in taken]
    plan = rule.plan(taken, past=Past(version=1 + seed, active=workers))
    whole, whole_m, _ = step(plan, theta, momentum, updates)
    parts = [
        step(plan, theta[s], None if momentum is None else momentum[s], [u[s] for u in updates])
        for s in (slice(border), slice(border, 51))
    ]
    assert np.array_equal(whole, np.concatenate([p[0] for p in parts]))
    assert (whole_m is not None) == rule.momentum
    if whole_m is not None:
        assert np.array_equal(whole_m, np.concatenate([p[1] for p in parts]))


def glance_at(facts: RoundFacts) -> Glance:
    """The sums of a round, as the coordinator's database adds them up."""
    late = last_aim(tick=facts.tick, length=facts.length)
    return Glance(
        now=facts.now,
        tick=facts.tick,
        length=facts.length,
        reports=len(facts.contributions),
        first_report_at=min((c.received_at for c in facts.contributions), default=None),
        leases=len(facts.leases),
        aimed=sum(lease.on_current_base and lease.aimed_at <= late for lease in facts.leases),
    )


WORKERS = st.sampled_from("abcdef")
ROUNDS = st.builds(
    RoundFacts,
    now=st.floats(0.0, 40.0),
    tick=st.floats(4.0, 12.0),
    length=st.floats(0.1, 12.0),
    contributions=st.lists(st.builds(given_by, WORKERS, at=st.floats(0.0, 20.0)), max_size=9),
    leases=st.lists(st.builds(OpenLease, WORKERS, st.booleans(), st.floats(0.0, 20.0)), max_size=4),
    workers=st.frozensets(WORKERS),
    work_left=st.booleans(),
    paused=st.booleans(),
    active=st.integers(0, 6),
)


@pytest.mark.parametrize("name", RULES)
@given(ROUNDS)
def test_what_is_too_early_is_never_due(name: str, facts: RoundFacts) -> None:
    """Catches a short cut that would leave a due version unmade."""
    rule = rule_named(name)
    if rule.too_early(glance_at(facts)):
        assert not rule.due(facts)


@pytest.mark.parametrize("name", RULES)
def test_the_middle_of_a_round_needs_no_look_at_everybody(name: str) -> None:
    """Catches a short cut that is never taken."""
    rule = rule_named(name)
    quiet = replace(FACTS, contributions=[], leases=[OpenLease("b", True, 9.0)])
    assert rule.too_early(glance_at(quiet))
    if name not in ("staleness_sgd", "delayed_nesterov"):  # these merge every report at once
        reported = replace(quiet, contributions=[given_by("a")])
        assert rule.too_early(glance_at(reported))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="sync, staleness_sgd"):
        rule_named("average")
    with pytest.raises(InvalidConfig, match="eta, mu, max_staleness"):
        rule_named("sync", {"lr": 1.0})
    with pytest.raises(UnknownName, match="coordinate_median"):
        rule_named("sync", {"aggregator": "median"})
    with pytest.raises(InvalidConfig, match="between"):
        rule_named("sync", {"mu": 1.0})
    assert rule_named("sync", {"mu": 0.5, "max_staleness": 2}) == Sync(mu=0.5, max_staleness=2)
