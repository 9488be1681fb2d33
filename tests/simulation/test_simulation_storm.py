"""A storm keeps every promise, and the same seed is the same storm."""

from __future__ import annotations

from typing import Any

import pytest

from bithaul.simulation.scenario import SCENARIOS

SMALL = {"workers": 8, "hours": 4.0, "crashes": 2, "rollbacks": 0}  # 15 minutes of it the disk is full


def test_a_small_storm_keeps_every_promise_twice_alike(make: Any) -> None:
    """Catches anything applied twice, lost or left out, and a rehearsal that is not repeatable."""
    outcomes = [make(SCENARIOS["storm"], **SMALL).run() for _ in range(2)]
    first = outcomes[0]
    assert first.broken == ""
    assert first.kept
    assert (first.double_applied, first.acknowledged_lost, first.slices_uncovered) == (0, 0, 0)
    assert first.replay_identical
    assert first.versions > 4
    assert first.accepted > 15
    assert first.loss_last < 0.5 * first.loss_first, "the run trains in spite of all"
    assert sum(first.faults.values()) > 20, "a storm in which nothing happens proves nothing"
    assert len(first.coordinator_crashes) >= 1
    assert first.worker_deaths > 3
    assert first.digest == outcomes[1].digest
    assert first.faults == outcomes[1].faults


@pytest.mark.parametrize("rule", ["buffered_nesterov", "fedbuff_sgd"])
def test_a_storm_over_rules_without_a_barrier(make: Any, rule: str) -> None:
    """Catches a rule that leaves updates behind, and step numbers that a replay cannot do with."""
    outcome = make(SCENARIOS["storm"], **SMALL, rule=rule, seed=1).run()
    assert outcome.broken == ""
    assert outcome.kept
    assert outcome.versions > 4


def test_rollbacks_in_a_storm_keep_every_promise(make: Any) -> None:
    """Catches a slice that no task has after a rollback, and a replay that does not know lineages."""
    storm = {**SMALL, "rollbacks": 2}
    outcome = make(SCENARIOS["storm"], **storm, rule="buffered_nesterov", seed=2).run()
    assert outcome.broken == ""
    assert outcome.kept
    assert outcome.rollbacks >= 2
    assert sum(outcome.faults.values()) > 20


@pytest.mark.parametrize("weights", ["bf16", "int4-delta"])
def test_a_storm_over_rounded_weights_keeps_every_promise(make: Any, weights: str) -> None:
    """Catches theta and what workers fetch drifting apart through crashes and rollbacks, to the bit; and a
    delta that leads elsewhere than to the full file."""
    storm = {**SMALL, "rollbacks": 2, "weights": weights}
    outcome = make(SCENARIOS["storm"], **storm, rule="buffered_nesterov", seed=2).run()
    assert outcome.broken == ""
    assert outcome.kept
    assert outcome.rollbacks >= 2
    assert len(outcome.coordinator_crashes) >= 1
    assert outcome.versions > 4
    assert outcome.loss_last < 0.5 * outcome.loss_first, "the run trains in spite of all"


def test_poisoned_machines_are_clipped_or_refused_and_honest_ones_are_not(make: Any) -> None:
    """Catches a gate that lets a poisoned update through, and one that accuses honest machines."""
    options = {"workers": 6, "hours": 1.5, "poisoned": 1, "seed": 3}
    gated = make(**options, gates=("norm",)).run()
    assert gated.kept, gated.broken
    honest, poisoned = gated.judged["honest"], gated.judged["poisoned"]
    assert honest["reports"] > 30
    assert (honest["clipped"], honest["refused"]) == (0, 0)
    assert poisoned["clipped"] + poisoned["refused"] >= poisoned["reports"] - 2 > 3, "before eight are known"
    assert gated.loss_last < 0.5 * gated.loss_first
    lost = make(**options).run()
    assert lost.loss_last > lost.loss_first, "without the gate the run is lost"


def test_a_calm_hour_loses_nothing(make: Any) -> None:
    """Catches a fleet that fails by itself: then a storm would prove nothing about faults."""
    outcome = make().run()
    assert outcome.kept
    assert outcome.verdicts == {"accepted": outcome.accepted}
    assert outcome.leases == {"reported": outcome.accepted}
    assert outcome.faults == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_storm_of_the_promise(make: Any) -> None:
    """200 machines, ten hours, 3x speed spread, five crashes of the coordinator."""
    outcome = make(SCENARIOS["storm"]).run()
    assert outcome.broken == ""
    assert outcome.kept
    assert len(outcome.coordinator_crashes) == 5
