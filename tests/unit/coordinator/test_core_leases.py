"""Leases end to end: idempotent claims, renewal, expiry, drain, pause, registration, contention."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from bithaul.coordinator.commands.claim_task import claim_task
from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.register_worker import register_worker
from bithaul.coordinator.commands.steer import drain_worker, pause_run, resume_run, set_budget
from bithaul.coordinator.database import fleet, runs, work
from bithaul.coordinator.services.sweeper import sweep
from bithaul.errors import Conflict, Gone, InvalidInput, LayoutMismatch, NotFound, UnknownName
from bithaul.exchange.messages import HeartbeatRequest, LeaseOutcome, RegisterRequest, RunState
from bithaul.rounds.leases import LeaseState, TaskState

House = Any
ENGINES = "both"


def beat(house: House, worker: str, task: Any = None, **values: Any) -> Any:
    lease = {} if task is None else {"task": task.task, "fence": task.fence}
    return heartbeat(house.c, worker, HeartbeatRequest(**{**lease, **values}))


def lease_of(house: House, worker: str, task: Any) -> work.LeaseRow:
    with house.c.database.read() as connection:
        lease = work.find_lease(connection, worker, task=task.task, fence=task.fence)
    assert lease is not None
    return lease


def test_asking_twice_gives_the_same_lease(house: House) -> None:
    """Catches a lost answer that costs a slice."""
    first = house.claim("ann")
    house.clock.time += 5
    again = house.claim("ann")
    assert (again.task, again.fence, again.ranges) == (first.task, first.fence, first.ranges)
    assert again.deadline_seconds == first.deadline_seconds - 5


def test_the_base_is_bound_at_the_claim(house: House) -> None:
    """Catches tasks that are stale the day they are handed out (T12)."""
    a, b = house.claim("ann"), house.claim("bob")
    house.report("ann", a)
    house.report("bob", b)
    house.merge()
    assert house.claim("ann").base_version == 2


def test_a_lease_on_a_base_too_old_is_replaced(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create(merge_options={"max_staleness": 0})
    house.register("ann", "bob")
    old = house.claim("ann")
    house.report("bob", house.claim("bob"))
    house.clock.time += 20
    assert house.merge() is not None
    new = house.claim("ann")
    assert (new.task, new.base_version) == (old.task, 2)
    assert new.fence != old.fence
    assert lease_of(house, "ann", old).state is LeaseState.REVOKED


def test_progress_renews_a_lease_and_being_alive_does_not(house: House) -> None:
    """Catches a hung worker that keeps its lease, and work thrown away because it took long (Q8)."""
    task = house.claim("ann")
    house.clock.time += task.deadline_seconds - 1
    first = lease_of(house, "ann", task).deadline
    beat(house, "ann", task, tokens=0, activity="training")
    assert lease_of(house, "ann", task).deadline == first
    beat(house, "ann", task, tokens=100, activity="training")
    renewed = lease_of(house, "ann", task).deadline
    assert renewed >= house.clock.time + 15
    beat(house, "ann", task, tokens=100, activity="training")
    assert lease_of(house, "ann", task).deadline == renewed, "no progress, no renewal"


def test_renewal_has_an_end(house: House) -> None:
    task = house.claim("ann")
    granted = house.clock.time
    for i in range(100):
        house.clock.time += 10
        beat(house, "ann", task, tokens=i + 1, activity="training")
    assert lease_of(house, "ann", task).deadline <= granted + 8 * task.deadline_seconds


def test_no_lease_is_taken_before_its_deadline(house: House) -> None:
    """Catches a sweeper that takes work from a worker that is merely quiet."""
    task = house.claim("ann")
    house.clock.time += task.deadline_seconds - 0.5
    sweep(house.c)
    assert lease_of(house, "ann", task).state is LeaseState.OPEN
    house.clock.time += 1
    sweep(house.c)
    assert lease_of(house, "ann", task).state is LeaseState.EXPIRED
    assert house.claim("bob").task == task.task, "the slice goes back whole"


def test_five_expiries_give_a_task_up(house: House) -> None:
    """Catches a task that is leased for ever (Q9)."""
    first = house.claim("ann")
    for _ in range(5):
        task = house.claim("ann")
        assert task.task == first.task
        house.clock.time += task.deadline_seconds + 1
        sweep(house.c)
    assert house.claim("ann").task != first.task
    with house.c.database.read() as connection:
        assert work.get_task(connection, first.task).state is TaskState.FAILED


def test_release_gives_the_task_back_without_blame(house: House) -> None:
    task = house.claim("ann")
    answer = beat(house, "ann", task, outcome=LeaseOutcome.RELEASED, code="stopping")
    assert not answer.lease_open
    again = house.claim("bob")
    assert again.task == task.task
    with house.c.database.read() as connection:
        assert work.get_task(connection, task.task).attempts == 0


def test_a_failed_task_goes_to_somebody_else(house: House) -> None:
    task = house.claim("ann")
    beat(house, "ann", task, outcome=LeaseOutcome.FAILED, code="shard_unavailable")
    assert house.claim("ann").task != task.task
    assert house.claim("bob").task == task.task


def test_drain_is_heard_and_survives_registration(house: House) -> None:
    """Catches a drain that nobody looks at and that registering undoes (Q6)."""
    task = house.claim("ann")
    drain_worker(house.c, "ann", on=True)
    assert beat(house, "ann", task, tokens=1).drain
    house.report("ann", task)
    house.merge()
    assert house.try_claim("ann").task is None
    house.register("ann")
    assert house.try_claim("ann").task is None
    drain_worker(house.c, "ann", on=False)
    house.clock.time += 30
    house.merge()
    assert house.claim("ann")
    with pytest.raises(NotFound):
        drain_worker(house.c, "nobody", on=True)


def test_a_drained_worker_gives_its_lease_back_when_it_asks_again(house: House) -> None:
    task = house.claim("ann")
    drain_worker(house.c, "ann", on=True)
    assert house.try_claim("ann").task is None
    assert house.claim("bob").task == task.task


def test_pause_stops_new_leases_only(house: House) -> None:
    task = house.claim("ann")
    assert pause_run(house.c).state is RunState.PAUSED
    assert pause_run(house.c).state is RunState.PAUSED
    assert house.claim("ann").fence == task.fence
    assert house.try_claim("bob").task is None
    assert beat(house, "ann", task).paused
    house.report("ann", task)
    assert house.merge() is not None, "what was reported is merged"
    assert resume_run(house.c).state is RunState.RUNNING
    assert house.claim("bob")


def test_a_gone_worker_is_revived_by_its_heartbeat(house: House) -> None:
    """Catches workers that are lost for good after a nap (Q7)."""
    house.clock.time += 61
    sweep(house.c)
    with house.c.database.read() as connection:
        assert fleet.get_worker(connection, "ann").gone
    beat(house, "ann")
    with house.c.database.read() as connection:
        assert not fleet.get_worker(connection, "ann").gone
        assert fleet.get_worker(connection, "bob").gone


def test_unregistered_workers_hear_410(house: House) -> None:
    with pytest.raises(Gone):
        house.try_claim("stranger")
    with pytest.raises(Gone):
        beat(house, "stranger")


def test_registering_twice_is_one_worker(house: House) -> None:
    house.claim("ann")
    house.register("ann")
    with house.c.database.read() as connection:
        assert [w.id for w in fleet.list_workers(connection)] == ["ann", "bob"]


def test_a_worker_must_agree_before_it_gets_work(house: House) -> None:
    """Catches work for a worker that built another model."""
    request = RegisterRequest(codecs=["fp32-v1"], weight_formats=["weights-v1"])
    answer = register_worker(house.c, "new", request)
    assert answer.run.label_token == 5
    assert [s.id for s in answer.run.shards] == ["train-00000", "train-00001"]
    assert answer.run.probe is not None
    assert house.try_claim("new").task is None
    with pytest.raises(LayoutMismatch):
        register_worker(house.c, "new", request.model_copy(update={"layout_hash": "a" * 64}))
    with pytest.raises(UnknownName, match="fp32-v1"):
        register_worker(house.c, "new", request.model_copy(update={"codecs": ["zip"]}))
    with pytest.raises(UnknownName, match="weights-v1"):
        register_worker(house.c, "new", request.model_copy(update={"weight_formats": ["zip"]}))


def test_a_finished_run_goes_on_with_more_budget(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create(budget_tokens=7 * 100)
    house.register("ann")
    house.report("ann", house.claim("ann"))
    house.clock.time += 30
    while house.merge() is not None:
        pass
    assert house.run.state is RunState.FINISHED
    with pytest.raises(Conflict):
        pause_run(house.c)
    assert set_budget(house.c, tokens=600).state is RunState.FINISHED
    assert set_budget(house.c, tokens=7 * 200).state is RunState.RUNNING
    assert house.claim("ann").base_version == 2
    with pytest.raises(InvalidInput):
        set_budget(house.c)


def test_the_rest_of_a_budget_is_shared_by_those_who_have_no_lease(make_house: Callable[..., House]) -> None:
    """Catches a busy worker that keeps a share of what is left: the end would come in ever smaller tasks."""
    house = make_house()
    house.create(budget_tokens=7 * 120)
    house.register("ann", "bob", "cid")
    assert [house.claim(name).examples for name in ("ann", "bob", "cid")] == [40, 40, 40]


def test_far_from_its_end_a_budget_limits_no_task(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create(budget_tokens=7 * 700)
    house.register("ann", "bob", "cid")
    assert [house.claim(name).examples for name in ("ann", "bob", "cid")] == [100, 100, 100]


def test_a_budget_of_seconds_counts_active_time_over_restarts(make_house: Callable[..., House]) -> None:
    """Catches a clock that counts the night in which the computer was off."""
    house = make_house()
    house.create(budget_tokens=None, budget_seconds=100)
    house.register("ann")
    for _ in range(3):
        task = house.claim("ann")
        for _ in range(10):
            house.clock.time += 1
            house.merge()
        house.report("ann", task)
        house.clock.time += 2
        house.merge()
        house.reopen()
        house.clock.time += 10_000
    assert 28 <= house.run.seconds_at(house.clock.time) <= 40
    with house.c.database.read() as connection:
        assert runs.get_run(connection).state is RunState.RUNNING


def test_each_position_is_leased_once_under_contention(house: House) -> None:
    """Sixteen threads, one winner for each slice. Catches a claim that reads first and writes later."""
    names = [f"w{i}" for i in range(16)]
    house.register(*names)
    got: list[tuple[int, list[Any]]] = []
    lock = threading.Lock()

    def work_on(name: str) -> None:
        task = claim_task(house.c, name).task
        assert task is not None
        with lock:
            got.append((task.task, task.ranges))

    threads = [threading.Thread(target=work_on, args=(n,)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({task for task, _ in got}) == 16
    with house.c.database.read() as connection:
        run = runs.get_run(connection)
        tasks = work.list_tasks(connection, run.id)
    spans = sorted(s for t in tasks for s in t.positions)
    assert all(a.end <= b.start for a, b in pairwise(spans))


def test_one_worker_measures_each_chosen_version(house: House) -> None:
    """Catches everybody measuring, nobody measuring, and a measurement that is lost."""
    a, b = house.claim("ann"), house.claim("bob")
    assert (a.probe, b.probe) == (True, False)
    house.report("ann", a)
    house.report("bob", b)
    house.merge()
    with house.c.database.read() as connection:
        from bithaul.coordinator.database import versions

        first = versions.find_version(connection, house.run.id, 1)
    assert first is not None
    assert first.heldout_loss == 2.25
    assert house.claim("ann").probe, "version 2: every second one"
