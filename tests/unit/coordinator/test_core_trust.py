"""Gates that a run switches on, and what they do to an update, its worker's trust and its credit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.commands.standing import pin_worker, restore_worker, set_aside_worker
from bithaul.coordinator.database import fleet, ledger, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.identity.audit import read_audit
from bithaul.errors import NotFound, UnknownName
from bithaul.exchange.messages import HeartbeatRequest, LeaseOutcome, Verdict
from bithaul.rounds.leases import LeaseState, TaskState
from bithaul.rounds.trust import Standing

House = Any
PINNED = {"merge_options": {"eta": 1.0, "mu": 0.0}}


def worker(house: House, name: str) -> WorkerRow:
    with house.c.database.read() as connection:
        return fleet.get_worker(connection, name)


def update(house: House, size: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.full(house.run.layout.size, size)


def rounds(house: House, count: int, *, names: tuple[str, ...] = ("ann", "bob")) -> None:
    """So many versions of equal updates."""
    for _ in range(count):
        for name in names:
            assert house.report(name, house.claim(name)).verdict is Verdict.ACCEPTED
        house.clock.time += 10.0
        assert house.merge() is not None


@pytest.fixture
def gated(make_house: Callable[..., House]) -> House:
    """Eight accepted updates of norm 1e-3 * sqrt(values), so that the usual size is known."""
    house = make_house()
    house.create(gates=["norm"], **PINNED)
    house.register("ann", "bob")
    rounds(house, 4)
    return house


def test_a_large_update_is_clipped_to_twice_the_usual_and_merged_so(gated: House) -> None:
    """Catches a clip that is told and not applied, and a replay that would judge again."""
    before = gated.theta()
    leased = {name: gated.claim(name) for name in ("ann", "bob")}
    receipt = gated.report("ann", leased["ann"], update=update(gated, 4e-3))
    assert receipt.verdict is Verdict.ACCEPTED
    assert receipt.clip == pytest.approx(0.5)
    gated.report("bob", leased["bob"])
    gated.clock.time += 10.0
    gated.merge()
    moved = before.astype(np.float64) - gated.theta()
    assert moved == pytest.approx(np.full(moved.size, (0.5 * 4e-3 + 1e-3) / 2), rel=1e-4)
    with gated.c.database.read() as connection:
        row = ledger.accepted_report(connection, leased["ann"].task)
    assert row is not None
    assert (row.clip, row.weight, row.credited) == (receipt.clip, 1.0, 700)
    assert worker(gated, "ann").standing == Standing.STEADY, "being clipped is no strike"


def test_ten_times_the_usual_is_refused_and_a_strike(gated: House) -> None:
    """Catches a poisoned update in the weights."""
    task = gated.claim("ann")
    receipt = gated.report("ann", task, update=update(gated, -11e-3))
    assert (receipt.verdict, receipt.code) == (Verdict.REJECTED, "norm")
    struck = worker(gated, "ann")
    assert (struck.standing, struck.trust_score, struck.trust_to_go) == (Standing.PROBATION, 0.75, 3)
    assert "times as large" in struck.trust_reason
    gated.claim("bob")
    assert gated.report("bob", gated.claim("bob")).verdict is Verdict.ACCEPTED
    again = gated.claim("ann")
    gated.report("ann", again)
    with gated.c.database.read() as connection:
        row = ledger.accepted_report(connection, again.task)
    assert row is not None
    assert row.weight == 0.375, "half of three quarters"


def test_without_the_gate_or_before_eight_are_known_nothing_is_judged(
    make_house: Callable[..., House],
) -> None:
    """Catches a gate that is on by itself, and a median of two."""
    house = make_house()
    house.create()
    house.register("ann", "bob")
    rounds(house, 4)
    assert house.report("ann", house.claim("ann"), update=update(house, 1.0)).clip == 1.0
    young = make_house()
    young.create(gates=["norm"])
    young.register("ann", "bob")
    rounds(young, 3)
    assert young.report("ann", young.claim("ann"), update=update(young, 1.0)).clip == 1.0


def test_an_unknown_gate_is_an_error_with_the_known_ones(make_house: Callable[..., House]) -> None:
    with pytest.raises(UnknownName, match="norm, speed, copy, audit, score, agreement, rollback"):
        make_house().create(gates=["nrom"])


def test_newcomers_among_themselves_move_the_weights_as_steady_workers_do(
    make_house: Callable[..., House],
) -> None:
    """Catches a fleet that is slowed because nobody knows it yet: to the bit."""
    for rule in ("sync", "staleness_sgd", "delayed_nesterov", "buffered_nesterov"):
        ends = []
        for pinned in (False, True):
            house = make_house()
            house.create(merge_rule=rule)
            house.register("ann", "bob")
            for name in ("ann", "bob") if pinned else ():
                pin_worker(house.c, name)
            tasks = {name: house.claim(name) for name in ("ann", "bob")}
            for i, (name, task) in enumerate(tasks.items()):
                house.report(name, task, update=update(house, 1e-3 * (i + 1)))
            house.clock.time += 10.0
            while house.merge() is not None:
                pass
            ends.append(house.theta())
        assert np.array_equal(*ends), rule
        assert not np.array_equal(ends[0], house.theta(1))


def test_three_accepted_reports_end_the_probation(house: House) -> None:
    assert worker(house, "ann").trust.weight(house.clock.time) == 0.5
    rounds(house, 3)
    assert worker(house, "ann").trust.weight(house.clock.time) == 1.0


def test_values_that_are_no_numbers_are_a_strike_and_kept(
    make_house: Callable[..., House],
) -> None:
    """Catches evidence that is lost, and evidence that fills the disk."""
    house = make_house(settings={"inspection_keep": 2})
    house.create()
    house.register("ann", "bob")
    size = house.run.layout.size
    bad = b"BGF4" + size.to_bytes(4, "little") + np.full(2 * size, np.nan, "<f4").tobytes()
    sent = []
    for _ in range(3):
        task = house.claim("ann")
        assert house.report("ann", task, payload=bad).code == "non_finite"
        sent.append(f"{task.task}.{task.fence}.bhuf")
        house.clock.time += 4000
    kept = sorted(house.c.settings.inspection_folder.iterdir())
    assert [path.name for path in kept] == sorted(sent[1:])
    assert bad in kept[0].read_bytes()
    assert worker(house, "ann").trust_score == 0.25


def test_strikes_use_the_score_up_and_an_hour_brings_a_quarter_back(gated: House) -> None:
    """Catches a worker that never comes back, and one that goes on and on."""
    for _ in range(4):
        claim = gated.try_claim("ann")
        while claim.task is None:
            gated.clock.time += 30
            claim = gated.try_claim("ann")
        gated.report("ann", claim.task, update=update(gated, 1.0))
    resting = worker(gated, "ann")
    assert (resting.standing, resting.trust.weight(gated.clock.time)) == (Standing.RESTING, 0.0)
    gated.clock.time += 3500
    assert gated.try_claim("ann").task is None
    gated.clock.time += 200
    gated.register("ann")
    task = gated.claim("ann")
    gated.report("ann", task)
    with gated.c.database.read() as connection:
        row = ledger.accepted_report(connection, task.task)
    assert row is not None
    assert row.weight == 0.125


def test_failed_tasks_in_a_row_are_a_rest_and_then_probation(house: House) -> None:
    rounds(house, 3)
    for _ in range(2):
        task = house.claim("ann")
        failed = HeartbeatRequest(task=task.task, fence=task.fence, outcome=LeaseOutcome.FAILED)
        heartbeat(house.c, "ann", failed)
    row = worker(house, "ann")
    assert (row.standing, row.trust_reason) == (Standing.RESTING, "2 failed tasks in a row")
    house.clock.time += 31
    assert house.report("ann", house.claim("ann")).verdict is Verdict.ACCEPTED
    assert (worker(house, "ann").standing, worker(house, "ann").trust_to_go) == (Standing.PROBATION, 2)


def test_a_worker_set_aside_is_compared_credited_and_not_merged(house: House) -> None:
    """Catches an update that the operator did not want in the weights, and work that is lost with it."""
    task = house.claim("ann")
    set_aside_worker(house.c, "ann", reason="a broken fan")
    with house.c.database.read() as connection:
        lease = work.find_lease(connection, "ann", task=task.task, fence=task.fence)
    assert lease is not None
    assert lease.state is LeaseState.RELEASED, "nobody waits for it"
    receipt = house.report("ann", task)
    assert (receipt.verdict, receipt.code) == (Verdict.COMPARED, "no_weight")
    assert "a broken fan" in receipt.reason
    assert "the operator" in receipt.reason
    assert house.report("ann", task) == receipt
    with house.c.database.read() as connection:
        assert work.get_task(connection, task.task).state is TaskState.PENDING, "its slice is open again"
        credit = ledger.credits_by_worker(connection, house.run.id)["ann"]
    assert (credit.accepted, credit.tokens, credit.credited) == (0, 0, 700)
    assert house.try_claim("ann").task is None
    restore_worker(house.c, "ann")
    assert house.report("ann", house.claim("ann")).verdict is Verdict.ACCEPTED
    with pytest.raises(NotFound, match="nobody"):
        set_aside_worker(house.c, "nobody")


def test_what_an_operator_does_to_workers_and_versions_is_in_the_audit_log(house: House) -> None:
    """SEC-53: who set a machine aside or went back is no guess afterwards."""
    set_aside_worker(house.c, "ann", reason="a broken fan", actor="olga")
    restore_worker(house.c, "ann", actor="olga")
    pin_worker(house.c, "ann", actor="pete")
    rounds(house, 1)
    roll_back(house.c, 1, actor="olga")
    found = [(row.actor, row.action, row.subject, row.detail) for row in read_audit(house.c, limit=10)]
    assert sorted(found) == [
        ("olga", "run.rollback", "1", "as version 3"),
        ("olga", "worker.restore", "ann", ""),
        ("olga", "worker.set-aside", "ann", "a broken fan"),
        ("pete", "worker.pin", "ann", ""),
    ]


def test_a_pinned_worker_keeps_its_weight(make_house: Callable[..., House]) -> None:
    """Catches own machines that a strike slows, and a pin that makes a worker appear to be there."""
    house = make_house()
    house.create()
    assert pin_worker(house.c, "ann", expected=True).gone
    with pytest.raises(NotFound):
        pin_worker(house.c, "nobody")
    house.register("ann", "bob")
    size = house.run.layout.size
    bad = b"BGF4" + size.to_bytes(4, "little") + np.full(2 * size, np.nan, "<f4").tobytes()
    assert house.report("ann", house.claim("ann"), payload=bad).code == "non_finite"
    assert worker(house, "ann").trust.weight(house.clock.time) == 1.0
    restore_worker(house.c, "ann")
    assert worker(house, "ann").trust.weight(house.clock.time) == 0.5


def test_credit_beyond_the_calibrated_speed_is_capped_and_a_strike(make_house: Callable[..., House]) -> None:
    """Catches a machine that says it did a day's work in a minute; its update still counts."""
    house = make_house()
    house.create(gates=["speed"])
    house.register("ann", "bob", speed=70.0)
    task, other = house.claim("ann"), house.claim("bob")
    house.clock.time += 2.0
    receipt = house.report("ann", task, seconds=1000.0)
    assert receipt.verdict is Verdict.ACCEPTED
    house.clock.time += 5.0
    house.report("bob", other, seconds=4.0)
    with house.c.database.read() as connection:
        credits = ledger.credits_by_worker(connection, house.run.id)
    assert credits["ann"].credited == 3 * 70 * 2
    assert credits["bob"].credited == credits["bob"].tokens == 700
    assert worker(house, "ann").trust_score == 0.75
    assert worker(house, "bob").trust_score == 1.0


def test_anothers_payload_is_refused_and_ones_own_is_not(make_house: Callable[..., House]) -> None:
    """Catches credit for an update that somebody else computed."""
    house = make_house()
    house.create(gates=["copy"])
    house.register("ann", "bob")
    theirs = house.claim("bob")
    assert house.report("ann", house.claim("ann")).verdict is Verdict.ACCEPTED
    receipt = house.report("bob", theirs)
    assert (receipt.verdict, receipt.code) == (Verdict.REJECTED, "copy")
    house.clock.time += 100
    assert house.merge() is not None
    assert house.report("ann", house.claim("ann")).verdict is Verdict.ACCEPTED


def test_a_late_report_earns_credit_if_it_can_be_true(house: House) -> None:
    """Catches credit that a header claims for a slice it never had."""
    task = house.claim("ann")
    house.clock.time += 10_000
    with house.c.database.write() as connection:
        lease = work.find_lease(connection, "ann", task=task.task, fence=task.fence)
        assert lease is not None
        work.move_lease(connection, lease, LeaseState.EXPIRED, now=house.clock.time)
        work.move_task(
            connection, work.get_task(connection, task.task), TaskState.PENDING, now=house.clock.time
        )
    house.register("ann", "bob")
    second = house.claim("bob")
    assert second.task == task.task
    house.report("bob", second, examples=50)
    assert house.report("ann", task).verdict is Verdict.TOO_LATE
    with house.c.database.read() as connection:
        assert ledger.credits_by_worker(connection, house.run.id)["ann"].credited == 700
