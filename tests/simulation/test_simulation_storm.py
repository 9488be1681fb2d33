"""A storm keeps every promise, and the same seed is the same storm."""

from __future__ import annotations

from typing import Any

import pytest

from bithaul.simulation.scenario import SCENARIOS

SMALL = {"workers": 8, "hours": 1.5, "crashes": 2}


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


def test_a_calm_hour_loses_nothing(make: Any) -> None:
    """Catches a fleet that fails by itself: then a storm would prove nothing about faults."""
    outcome = make().run()
    assert outcome.kept
    assert outcome.verdicts == {"accepted": outcome.accepted}
    assert outcome.leases == {"reported": outcome.accepted}
    assert outcome.faults == {}


@pytest.mark.slow
def test_the_storm_of_the_promise(make: Any) -> None:
    """200 machines, ten hours, 3x speed spread, five crashes of the coordinator."""
    outcome = make(SCENARIOS["storm"]).run()
    assert outcome.broken == ""
    assert outcome.kept
    assert len(outcome.coordinator_crashes) == 5
