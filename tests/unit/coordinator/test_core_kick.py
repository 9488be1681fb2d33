"""Kicking stuck tasks: who is stuck, what a kick does, and what becomes of a report that comes late."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bithaul.coordinator.blobs.uploads import UploadInfo
from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.kick import kick_stuck, kick_task
from bithaul.coordinator.commands.seed_tasks import seed_tasks, withdraw_seeding
from bithaul.coordinator.database import work
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.queries.dashboard import dashboard
from bithaul.coordinator.queries.stuck import stuck_tasks
from bithaul.coordinator.queries.taskbrowser import task_browser, task_page
from bithaul.errors import Conflict, NotFound
from bithaul.exchange.messages import HeartbeatRequest, Verdict
from bithaul.rounds.leases import LeaseState, TaskState

House = Any
ENGINES = "both"
QUIET = 91.0  # a second more than is borne


@pytest.fixture
def slow(make_house: Any) -> House:
    """Tasks of a minute and a half, so that leases outlive the patience."""
    house = make_house()
    house.create(task_seconds=90.0)
    house.register("ann", "bob")
    return house


def beat(house: House, worker: str, task: Any, tokens: int, **values: Any) -> Any:
    request = HeartbeatRequest(task=task.task, fence=task.fence, tokens=tokens, **values)
    return heartbeat(house.c, worker, request)


def lease_of(house: House, worker: str, task: Any) -> work.LeaseRow:
    with house.c.database.read() as connection:
        lease = work.find_lease(connection, worker, task=task.task, fence=task.fence)
    assert lease is not None
    return lease


def state_of(house: House, task: Any) -> tuple[TaskState, int]:
    with house.c.database.read() as connection:
        row = work.get_task(connection, task.task)
    return row.state, row.attempts


def test_standing_still_is_stuck_and_being_alive_is_no_progress(slow: House) -> None:
    """Catches a hung worker that looks well because its heartbeat goes on."""
    task, other = slow.claim("ann"), slow.claim("bob")
    slow.clock.time += 5
    beat(slow, "ann", task, 700)
    slow.clock.time += QUIET - 1
    beat(slow, "ann", task, 700)
    beat(slow, "bob", other, 900)
    assert stuck_tasks(slow.c).rows == []
    slow.clock.time += 1
    [row] = stuck_tasks(slow.c).rows
    assert (row.task, row.worker, row.why) == (task.task, "ann", "It has not got further for 91 s.")
    view = task_browser(slow.c, state="stuck")
    assert (view.stuck, [t.id for t in view.rows], view.counts["leased"]) == (1, [task.task], 2)
    assert task_page(slow.c, task.task).task.stuck == row.why
    assert task_page(slow.c, other.task).task.stuck == ""
    assert [m.name for m in dashboard(slow.c).stalled] == ["ann"], "the dashboard says the same"


def test_a_worker_that_never_ends_is_stuck(slow: House) -> None:
    """Past its soft stop, what transfers take and some patience, tokens do not help."""
    task = slow.claim("ann")
    tokens = 0
    while slow.clock.time < 1_000_000.0 + task.soft_stop_seconds + QUIET + 30:
        slow.clock.time += 30
        tokens += 100
        beat(slow, "ann", task, tokens)
    [row] = stuck_tasks(slow.c).rows
    assert "should have stopped" in row.why


def test_pieces_of_an_upload_are_progress(slow: House) -> None:
    """Catches a kick of a worker whose update is on a slow line."""
    task = slow.claim("ann")
    beat(slow, "ann", task, 700)
    name = "a" * 32
    info = UploadInfo(worker="ann", task=task.task, fence=task.fence, length=10, created=slow.clock.time)
    slow.c.uploads.create(name, info)
    file = slow.c.settings.uploads_folder / f"{name}.upload"
    slow.clock.time += QUIET + 10
    os.utime(file, (slow.clock.time - 20, slow.clock.time - 20))
    assert stuck_tasks(slow.c).rows == []
    assert dashboard(slow.c).stalled == []
    os.utime(file, (slow.clock.time - QUIET, slow.clock.time - QUIET))
    assert len(stuck_tasks(slow.c).rows) == 1


def test_a_kick_revokes_and_its_worker_hears_it(slow: House) -> None:
    """Catches a kick that counts as a failed try, and a worker that trains on for nothing."""
    task, other = slow.claim("ann"), slow.claim("bob")
    slow.clock.time += QUIET
    beat(slow, "bob", other, 900)
    kicked = kick_task(slow.c, task.task, actor="ada")
    assert [(k.task, k.worker) for k in kicked.tasks] == [(task.task, "ann")]
    lease = lease_of(slow, "ann", task)
    assert lease.state is LeaseState.REVOKED
    assert lease.reason == "kicked by an operator: it has not got further for 91 s"
    assert state_of(slow, task) == (TaskState.PENDING, 0)
    assert beat(slow, "ann", task, 701).lease_open is False
    assert beat(slow, "bob", other, 901).lease_open is True
    assert slow.c.events.merge.is_set()
    [row] = read_audit(slow.c, limit=5, action="task.kick")
    assert (row.actor, row.subject) == ("ada", str(task.task))
    assert row.detail == f"Task {task.task} of ann was kicked and waits for the next worker."
    again = slow.claim("ann")
    assert (again.task, again.fence != task.fence) == (task.task, True)


def test_a_late_report_still_counts(slow: House) -> None:
    """First valid report wins, also on a revoked lease."""
    task = slow.claim("ann")
    slow.clock.time += QUIET
    kick_task(slow.c, task.task)
    assert slow.report("ann", task).verdict is Verdict.ACCEPTED
    assert lease_of(slow, "ann", task).state is LeaseState.REPORTED


@pytest.mark.parametrize("late_first", [True, False])
def test_whoever_reports_first_wins(slow: House, late_first: bool) -> None:
    """Catches a slice that counts twice, and a winner chosen by who holds the lease."""
    task = slow.claim("ann")
    slow.clock.time += QUIET
    kick_task(slow.c, task.task)
    again = slow.claim("bob")
    assert again.task == task.task
    if late_first:
        assert slow.report("ann", task).verdict is Verdict.ACCEPTED
        assert lease_of(slow, "bob", again).state is LeaseState.SUPERSEDED
        assert beat(slow, "bob", again, 9).lease_open is False
        assert slow.report("bob", again).verdict is Verdict.TOO_LATE
    else:
        assert slow.report("bob", again).verdict is Verdict.ACCEPTED
        receipt = slow.report("ann", task)
        assert (receipt.verdict, receipt.code) == (Verdict.TOO_LATE, "too_late")


def test_all_that_are_stuck_and_no_other(slow: House) -> None:
    slow.register("cleo")
    tasks = {name: slow.claim(name) for name in ("ann", "bob", "cleo")}
    slow.clock.time += QUIET
    beat(slow, "cleo", tasks["cleo"], 10)
    kicked = kick_stuck(slow.c)
    assert [k.worker for k in kicked.tasks] == ["ann", "bob"]
    assert state_of(slow, tasks["cleo"])[0] is TaskState.LEASED
    [row] = read_audit(slow.c, limit=5, action="task.kick")
    assert row.subject == "2 tasks"
    assert row.detail.endswith(f"workers: {tasks['ann'].task} of ann, {tasks['bob'].task} of bob.")
    with pytest.raises(Conflict) as refused:
        kick_stuck(slow.c)
    assert refused.value.error_code == "nothing_stuck"


def test_what_is_not_stuck_is_not_kicked(slow: House) -> None:
    task = slow.claim("ann")
    with pytest.raises(Conflict) as refused:
        kick_task(slow.c, task.task)
    assert refused.value.error_code == "task_not_stuck"
    assert lease_of(slow, "ann", task).state is LeaseState.OPEN
    slow.report("ann", task)
    with pytest.raises(Conflict) as refused:
        kick_task(slow.c, task.task)
    assert refused.value.error_code == "task_not_held"
    with pytest.raises(NotFound):
        kick_task(slow.c, 99)


def test_a_kicked_task_is_not_withdrawn_with_its_seeding(slow: House) -> None:
    """Somebody had it, and the late report must still find it."""
    made = seed_tasks(slow.c, tasks=2, examples=20)
    task = slow.claim("ann")
    slow.clock.time += QUIET
    kick_task(slow.c, task.task)
    assert withdraw_seeding(slow.c, made.seeding).withdrawn == 1
    assert slow.report("ann", task).verdict is Verdict.ACCEPTED
