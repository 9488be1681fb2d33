"""Seeding on a real database: preview, exactly that, first served, and undone in one transaction."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from bithaul.coordinator.commands import seed_tasks as seeding_command
from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.commands.seed_tasks import seed_tasks, withdraw_seeding
from bithaul.coordinator.commands.steer import pause_run
from bithaul.coordinator.database import runs, work
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.queries.seeding import seeding_preview, seedings_view
from bithaul.coordinator.services.sweeper import sweep
from bithaul.errors import Conflict, InvalidInput, NotFound
from bithaul.exchange.messages import HeartbeatRequest, LeaseOutcome, RunState, Verdict
from bithaul.rounds.leases import TaskState

House = Any
ENGINES = "both"


def places(house: House) -> Counter[int]:
    """How many places each position has (exchange.md section 2)."""
    with house.c.database.read() as connection:
        run = runs.get_run(connection)
        spans = list(work.read_free(connection, run).returned)
        for task in work.list_tasks(connection, run.id):
            if task.state is not TaskState.DISCARDED:
                spans += task.positions
    return Counter(p for span in spans for p in range(span.start, span.end))


def partitioned(house: House) -> bool:
    return places(house) == Counter(range(house.run.position_cursor))


def states(house: House) -> Counter[str]:
    with house.c.database.read() as connection:
        return Counter(str(t.state) for t in work.list_tasks(connection, house.run.id))


def test_a_preview_changes_nothing_and_says_everything(house: House) -> None:
    before = house.run
    view = seeding_preview(house.c, tasks=20, examples=40)
    assert view.problems == []
    assert (view.first, view.last, view.returned) == (0, 799, 0)
    assert view.passes == 1.6
    assert (view.first_pass, view.last_pass) == (1, 2)
    assert view.tokens == 800 * 7
    assert view.budget_share == 5600 / 1e9
    assert view.seconds == 5600 / 140, "two workers of 70 tokens per second"
    assert (view.task_seconds, view.usual_seconds) == (280 / 70, 10.0)
    assert house.run == before
    assert states(house) == {}
    assert read_audit(house.c, limit=5, action="task") == []


def test_what_was_previewed_is_what_is_done(house: House) -> None:
    """Catches tasks cut elsewhere than the operator saw, and a seeding without a trace of who."""
    task = house.claim("ann")
    house.report("ann", task, examples=60)  # 40 come back
    view = seeding_preview(house.c, tasks=3, examples=20)
    assert (view.first, view.last, view.returned) == (60, 119, 40)
    made = seed_tasks(house.c, tasks=3, examples=20, mark=view.mark, actor="ada")
    assert (made.first, made.last, made.tasks, made.examples) == (60, 119, 3, 20)
    assert partitioned(house)
    with house.c.database.read() as connection:
        seeded = [t for t in work.list_tasks(connection, house.run.id) if t.seeding == made.seeding]
    assert [[(s.start, s.count) for s in t.positions] for t in seeded] == [
        [(60, 20)],
        [(80, 20)],
        [(100, 20)],
    ]
    [row] = seedings_view(house.c).rows
    assert (row.tasks, row.waiting, row.taken, row.withdrawn, row.made_by) == (3, 3, 0, 0, "ada")
    [audit] = read_audit(house.c, limit=5, action="task.seed")
    assert (audit.actor, audit.subject) == ("ada", "1")
    assert audit.detail == "Seeding 1: 3 tasks of 20 examples each, positions 60 to 119."


def test_a_queue_that_moved_is_a_refusal(house: House) -> None:
    """Catches a confirmation that does something else, and one that half happens."""
    mark = seeding_preview(house.c, tasks=3, examples=20).mark
    house.claim("ann")
    with pytest.raises(Conflict) as refused:
        seed_tasks(house.c, tasks=3, examples=20, mark=mark)
    assert refused.value.error_code == "queue_moved"
    assert states(house) == {"leased": 1}
    assert seedings_view(house.c).rows == []
    again = seeding_preview(house.c, tasks=3, examples=20).mark
    seed_tasks(house.c, tasks=3, examples=20, mark=again)
    with pytest.raises(Conflict):
        seed_tasks(house.c, tasks=3, examples=20, mark=again)
    assert partitioned(house)


def test_seeded_tasks_are_taken_first_and_in_order(house: House) -> None:
    seed_tasks(house.c, tasks=2, examples=20)
    cursor = house.run.position_cursor
    first, second = house.claim("ann"), house.claim("bob")
    assert (first.task, second.task) == (1, 2)
    assert first.examples == second.examples == 20
    assert house.run.position_cursor == cursor
    house.report("ann", first)
    house.report("bob", second)
    house.merge()
    third = house.claim("ann")
    assert third.task == 3
    assert house.run.position_cursor > cursor, "nothing waits: a fresh slice"


def test_a_task_too_large_is_stopped_in_time_and_its_tail_comes_back(house: House) -> None:
    """Catches a soft stop that follows the task's size: a slow worker would hold the round for hours."""
    usual = house.claim("bob").soft_stop_seconds
    seed_tasks(house.c, tasks=1, examples=4000)
    task = house.claim("ann")
    assert task.examples == 4000
    assert task.soft_stop_seconds == pytest.approx(usual, rel=0.1)
    receipt = house.report("ann", task, examples=120)
    assert receipt.verdict is Verdict.ACCEPTED
    assert partitioned(house)
    assert seeding_preview(house.c, tasks=1, examples=4000).returned == 3880


def test_undo_takes_back_what_nobody_has(house: House) -> None:
    """Catches positions that are lost or free twice, and tasks taken from under their workers."""
    made = seed_tasks(house.c, tasks=5, examples=20)
    held = house.claim("ann")
    done = withdraw_seeding(house.c, made.seeding, actor="ada")
    assert (done.withdrawn, done.taken, done.examples) == (4, 1, 80)
    assert partitioned(house)
    assert states(house) == {"leased": 1, "cancelled": 4}
    [row] = seedings_view(house.c).rows
    assert (row.waiting, row.taken, row.withdrawn) == (0, 1, 4)
    assert row.withdrawn_at == house.clock.time
    assert house.report("ann", held).verdict is Verdict.ACCEPTED
    next_one = house.claim("bob")
    assert next_one.task == 6
    assert seeding_preview(house.c, tasks=1, examples=4).first == house.run.position_cursor
    again = withdraw_seeding(house.c, made.seeding)
    assert (again.withdrawn, again.taken, again.examples) == (0, 1, 0)
    assert partitioned(house)
    told = [row.detail for row in read_audit(house.c, limit=5, action="task.unseed")]
    assert told == [
        "No task of seeding 1 waits any more: nothing was withdrawn; 1 had already been taken.",
        "4 tasks of seeding 1 were withdrawn, 80 examples went back; 1 had already been taken.",
    ]
    with pytest.raises(NotFound):
        withdraw_seeding(house.c, 9)


@pytest.mark.parametrize("outcome", list(LeaseOutcome))
def test_what_somebody_had_stays_even_when_it_waits_again(house: House, outcome: LeaseOutcome) -> None:
    """A released task counts no attempt, yet its late report must still find it."""
    made = seed_tasks(house.c, tasks=2, examples=20)
    task = house.claim("ann")
    heartbeat(house.c, "ann", HeartbeatRequest(task=task.task, fence=task.fence, outcome=outcome, code="x"))
    assert states(house) == {"pending": 2}
    done = withdraw_seeding(house.c, made.seeding)
    assert (done.withdrawn, done.taken) == (1, 1)
    assert house.report("ann", task).verdict is Verdict.ACCEPTED
    assert partitioned(house)


def test_the_budget_bounds_what_waits_and_what_comes(make_house: Callable[..., House]) -> None:
    """Catches seeding the same budget twice: leased, waiting and new tasks share it."""
    house = make_house()
    house.create(budget_tokens=7.0 * 1000)
    house.register("ann", "bob")
    leased = house.claim("ann").examples
    left = (1000 - leased) // 40
    seed_tasks(house.c, tasks=left - 1, examples=40)
    assert seeding_preview(house.c, tasks=1, examples=40).problems == []
    refused = seeding_preview(house.c, tasks=2, examples=40)
    assert "room for 1 more tasks of this size, not for 2" in refused.problems[0]
    assert (refused.mark, refused.first) == ("", None)
    with pytest.raises(InvalidInput, match="room for 1 more"):
        seed_tasks(house.c, tasks=2, examples=40)
    with house.c.database.write() as connection:
        runs.update_run(connection, house.run.id, state=RunState.FINISHED)
    assert "has ended" in seeding_preview(house.c, tasks=1, examples=40).problems[0]
    withdraw_seeding(house.c, 1)
    assert partitioned(house), "undo works after the end too"


def test_a_paused_run_can_be_seeded(house: House) -> None:
    pause_run(house.c)
    seed_tasks(house.c, tasks=1, examples=20)
    assert house.try_claim("ann").task is None


def test_nobody_who_can_work_is_said(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create(budget_tokens=None, budget_seconds=60.0)
    view = seeding_preview(house.c, tasks=1, examples=20)
    assert (view.seconds, view.budget_share, view.problems) == (None, None, [])
    page = seedings_view(house.c)
    assert (page.suggested_tasks, page.suggested_examples, page.batch_examples) == (4, 4, 4)


def test_a_task_its_worker_failed_hides_none_behind_it(house: House) -> None:
    """Waiting tasks are read a few at a time: catches a worker that starves behind those it has failed."""
    seed_tasks(house.c, tasks=work.LOOKED_AT + 2, examples=4)
    with house.c.database.write() as connection:
        connection.execute(
            text("UPDATE tasks SET failed_by = '[\"ann\"]' WHERE id <= :last"), {"last": work.LOOKED_AT + 1}
        )
    assert house.claim("ann").task == work.LOOKED_AT + 2
    assert house.claim("bob").task == 1


def test_the_most_at_once(house: House) -> None:
    """Ten thousand tasks are one transaction of a moment, and a claim does not read them all."""
    seed_tasks(house.c, tasks=10_000, examples=4)
    assert house.claim("ann").task == 1
    assert withdraw_seeding(house.c, 1).withdrawn == 9999
    assert states(house) == {"leased": 1, "cancelled": 9999}
    assert house.run.position_cursor == 40_000
    assert seeding_preview(house.c, tasks=1, examples=4).first == 4


def test_a_rollback_leaves_what_waits(house: House) -> None:
    for _ in range(2):
        for name in ("ann", "bob"):
            house.report(name, house.claim(name))
        house.clock.time += 10.0
        assert house.merge() is not None
    made = seed_tasks(house.c, tasks=2, examples=20)
    roll_back(house.c, 2)
    assert withdraw_seeding(house.c, made.seeding).withdrawn == 2
    assert partitioned(house)


@pytest.mark.parametrize("seed", range(4))
def test_every_position_is_in_one_place_whatever_happens(make_house: Callable[..., House], seed: int) -> None:
    """Seeding and undoing among claims, reports, failures and expiries, in any order."""
    house = make_house()
    house.create()
    house.register("ann", "bob", "cleo")
    choose = random.Random(seed)
    held: dict[str, Any] = {}
    made: list[int] = []
    for _ in range(60):
        move = choose.choice(("seed", "undo", "claim", "claim", "report", "report", "fail", "wait"))
        worker = choose.choice(("ann", "bob", "cleo"))
        if move == "seed":
            size = 4 * choose.randint(1, 30)
            made.append(seed_tasks(house.c, tasks=choose.randint(1, 4), examples=size).seeding)
        elif move == "undo" and made:
            withdraw_seeding(house.c, choose.choice(made))
        elif move == "claim":
            held[worker] = house.try_claim(worker).task or held.get(worker)
        elif held.get(worker) is not None:
            task = held.pop(worker)
            if move == "report":
                house.report(worker, task, examples=4 * choose.randint(1, task.examples // 4))
                house.merge()
            elif move == "fail":
                beat = HeartbeatRequest(
                    task=task.task, fence=task.fence, outcome=LeaseOutcome.FAILED, code="x"
                )
                heartbeat(house.c, worker, beat)
            else:
                house.clock.time += 200.0
                sweep(house.c)
        assert partitioned(house), move
    assert made


def test_all_of_it_or_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches positions that are in two places, or in none, after a crash halfway."""
    made = seed_tasks(house.c, tasks=3, examples=20)

    def die(*unused: Any, **options: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(seeding_command, "record", die)
        for use in (
            lambda: withdraw_seeding(house.c, made.seeding),
            lambda: seed_tasks(house.c, tasks=3, examples=20),
        ):
            with pytest.raises(ZeroDivisionError):
                use()
            house.reopen()
            assert states(house) == {"pending": 3}
            assert house.run.position_cursor == 60
            assert partitioned(house)
    assert withdraw_seeding(house.c, made.seeding).withdrawn == 3
