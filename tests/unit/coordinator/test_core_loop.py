"""The way of a task through the core: register, claim, report, merge, finish."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bithaul.coordinator.commands import merge_round
from bithaul.coordinator.queries.progress import progress
from bithaul.exchange.messages import RunState, Verdict
from bithaul.rounds.rules import RULES

House = Any


def test_one_worker_ends_bit_for_bit_where_it_went(house: House) -> None:
    """Catches a wrong sign, a wrong scale and rounding in the merge."""
    house.register("ann")
    theta = house.theta(1)
    goal = (theta * np.float32(0.9) + np.float32(0.01)).astype(np.float32)
    task = house.claim("ann")
    receipt = house.report("ann", task, update=theta.astype(np.float64) - goal)
    assert receipt.verdict is Verdict.ACCEPTED
    house.clock.time += 60
    made = house.merge()
    assert made is not None
    assert made.version == 2
    assert np.array_equal(house.theta(2), goal)


def test_two_equal_workers_are_averaged_without_waiting(house: House) -> None:
    """Catches a barrier that waits for its deadline although everybody reported."""
    a, b = house.claim("ann"), house.claim("bob")
    assert house.merge() is None
    house.report("ann", a, update=np.full(house.run.layout.size, 1.0))
    assert house.merge() is None, "bob's lease is open"
    waiting = house.try_claim("ann")
    assert waiting.task is None
    assert waiting.retry_after <= 0.25
    house.report("bob", b, update=np.full(house.run.layout.size, 3.0))
    before = house.theta(1)
    made = house.merge()
    assert made is not None
    assert made.contributors == 2
    assert np.array_equal(house.theta(2), (before.astype(np.float64) - 2.0).astype(np.float32))
    assert house.claim("ann").base_version == 2


def test_the_run_finishes_at_its_budget(make_house: Callable[..., House]) -> None:
    """Catches a run that never ends, or leases work beyond its budget."""
    house = make_house()
    house.create(budget_tokens=7 * 1000)
    house.register("ann", "bob")
    for _ in range(20):
        tasks = [(w, house.try_claim(w).task) for w in ("ann", "bob")]
        for worker, task in tasks:
            if task is not None:
                house.clock.time += 5
                house.report(worker, task)
        while house.merge() is not None:
            pass
        if house.run.state is RunState.FINISHED:
            break
    view = progress(house.c)
    assert view.state is RunState.FINISHED
    assert view.progress == 1.0
    assert 0.98 * 7000 <= view.tokens <= 1.06 * 7000
    assert [w.share for w in view.workers] == [0.5, 0.5]
    assert house.try_claim("ann").state is RunState.FINISHED
    assert view.series[1].train_loss == 2.5
    assert view.series[0].heldout_loss == 2.25


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_brings_a_run_to_its_end(make_house: Callable[..., House], rule: str) -> None:
    """Catches a rule that leaves accepted updates unmerged, or a worker waiting for ever."""
    house = make_house()
    house.create(budget_tokens=7 * 1000, merge_rule=rule)
    house.register("ann", "bob")
    start = house.theta(1)
    for _ in range(40):
        tasks = [(w, house.try_claim(w).task) for w in ("ann", "bob")]
        house.clock.time += 5
        for worker, task in tasks:
            if task is not None:
                house.report(worker, task, update=np.full(start.size, 1e-3))
        while house.merge() is not None:
            pass
        if house.run.state is RunState.FINISHED:
            break
    view = progress(house.c)
    assert view.state is RunState.FINISHED
    assert 0.98 * 7000 <= view.tokens <= 1.06 * 7000
    assert (house.theta() < start).all(), "theta moves against the pseudo-gradient"
    assert house.newest.outer_step["outer"]["eta"] > 0


def test_a_look_in_the_middle_of_a_round_reads_sums_only(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a merger that reads every lease, report and worker each time a report arrives, and one that
    forgets the run's time over it."""
    everybody: list[float] = []
    honest = merge_round.read_round

    def seen(*args: Any, **kwargs: Any) -> Any:
        everybody.append(kwargs["now"])
        return honest(*args, **kwargs)

    monkeypatch.setattr(merge_round, "read_round", seen)
    a, b = house.claim("ann"), house.claim("bob")
    house.report("ann", a, update=np.full(house.run.layout.size, 1.0))
    before = house.run.active_seconds
    house.clock.time += 2
    assert house.merge() is None
    assert everybody == []
    assert house.run.active_seconds == pytest.approx(before + 2)
    house.report("bob", b, update=np.full(house.run.layout.size, 3.0))
    made = house.merge()
    assert made is not None
    assert made.contributors == 2
    assert everybody
