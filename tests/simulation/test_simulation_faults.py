"""Each fault alone, as one line of a script: it happens, and nothing that was promised breaks."""

from __future__ import annotations

from typing import Any

import pytest

from bithaul.coordinator.context import CrashPoints as CoordinatorPoints
from bithaul.coordinator.queries import stuck
from bithaul.simulation.faults import Kind
from bithaul.worker.tools import CrashPoints as WorkerPoints


def judged(rehearsal: Any) -> Any:
    """The outcome, after every rule fired and everything held."""
    outcome = rehearsal.run()
    assert rehearsal.faults.left == [], "a fault that was asked for did not happen"
    assert outcome.broken == ""
    assert outcome.kept
    return outcome


def test_faults_of_the_line(make: Any) -> None:
    """Catches an update applied twice after a lost answer, or lost with a lost request."""
    rehearsal = make()
    at = rehearsal.faults.at
    at(worker="w1", nth=1).drop_ack()
    at(worker="w1", nth=4).duplicate()
    at(worker="w2", nth=1).drop_request()
    at(worker="w2", nth=3).slow(20.0)
    at(worker="w3", nth=1).kill_mid_upload(0.6)
    at(worker="w3", nth=3).partition(900.0, "submit")
    at(worker="w1", nth=2).drop_ack("work")
    at(worker="w2", nth=2).duplicate("work")
    outcome = judged(rehearsal)
    assert outcome.verdicts == {"accepted": outcome.accepted}
    assert outcome.accepted > 9
    assert outcome.worker_deaths == 1


def test_damaged_updates_are_refused_and_their_slices_done_again(make: Any) -> None:
    """Catches a byte that changed on its way, or a NaN, in the weights."""
    rehearsal = make()
    rehearsal.faults.at(worker="w1").corrupt(0.9)
    rehearsal.faults.at(worker="w2").nan()
    outcome = judged(rehearsal)
    assert outcome.verdicts["rejected"] == 2
    assert outcome.given_up == 0
    assert outcome.loss_last < outcome.loss_first


def test_machines_that_die_sleep_or_have_a_wrong_clock(make: Any) -> None:
    rehearsal = make(hours=1.5)
    at = rehearsal.faults.at
    at(worker="w1", nth=2).kill(back_after=30.0)
    at(worker="w2", nth=1).kill(back_after=7200.0)
    at(worker="w3", nth=2).sleep(7200.0)
    at(worker="w1", nth=1).clock_skew(3600.0)
    outcome = judged(rehearsal)
    assert outcome.worker_deaths == 2
    assert outcome.leases["expired"] >= 1


@pytest.mark.parametrize(("aggregator", "grows"), [("mean", True), ("krum", False)])
def test_sign_flipped_updates(make: Any, aggregator: str, grows: bool) -> None:
    """The mean defends against nothing and a robust rule does: catches poison that does not poison."""
    rehearsal = make(workers=6, aggregator=aggregator)
    for nth in range(1, 5):
        rehearsal.faults.at(worker="w6", nth=nth).sign_flip(10.0)
    outcome = rehearsal.run()
    assert outcome.kept
    assert rehearsal.faults.counts[Kind.SIGN_FLIP] >= 3
    first, last = outcome.loss_first, outcome.loss_last
    assert (last > 0.6 * first) == grows, (first, last)


@pytest.mark.parametrize(
    ("rule", "weights"), [("sync_diloco", "fp32"), ("buffered_nesterov", "bf16"), ("sync", "int8-delta")]
)
def test_a_crash_at_every_named_point(make: Any, rule: str, weights: str) -> None:
    """Catches a point in the code that no rehearsal passes, on either side, and one where a crash hurts."""
    rehearsal = make(workers=4, hours=4.0, rule=rule, weights=weights, rollbacks=1)
    points = [name for name in CoordinatorPoints.NAMES if not name.startswith("score.")]  # test_core_scores
    for i, point in enumerate(points):
        once = point == "sweep.half" or point.startswith("rollback.")
        rehearsal.faults.crash_coordinator(point, nth=1 if once else 1 + i % 3)
    for i, point in enumerate(WorkerPoints.NAMES):
        rehearsal.faults.at(worker=f"w{1 + i % 3}", nth=2).crash(point)
    rehearsal.faults.at(worker="w4", nth=1).kill(back_after=7200.0)
    outcome = judged(rehearsal)
    assert sorted(outcome.coordinator_crashes) == sorted(points)
    assert outcome.worker_deaths == 1 + len(WorkerPoints.NAMES)


def test_seeding_undoing_and_kicking(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches positions that an undo loses or frees twice, and a kicked task that counts twice or never."""
    monkeypatch.setattr(stuck, "patience", lambda _: 300.0)  # in a rehearsal heartbeats are a task apart
    rehearsal = make(workers=4, hours=6.0, seedings=40, kicks=36)
    for worker, nth in (("w1", 1), ("w2", 2), ("w3", 1)):
        rehearsal.faults.at(worker=worker, nth=nth).sleep(3000.0)
    rehearsal.faults.at(worker="w4", nth=2).kill(back_after=1200.0)
    outcome = judged(rehearsal)
    assert rehearsal.queue.withdrawn > 20
    assert rehearsal.queue.taken > 10
    assert rehearsal.queue.kicked > 2
    assert outcome.leases["revoked"] > 0
    assert outcome.accepted > 10
