"""Going back to an older version: what comes back, what is given up, who hears of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.merge_round import merge_round
from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.commands.standing import pin_worker
from bithaul.coordinator.commands.steer import resume_run
from bithaul.coordinator.context import CrashPoints
from bithaul.coordinator.database import fleet, ledger, runs, versions, work
from bithaul.coordinator.database.tables import reports
from bithaul.coordinator.queries.health import problems
from bithaul.coordinator.queries.progress import progress
from bithaul.coordinator.services.merger import merge_all
from bithaul.coordinator.services.retention import retain
from bithaul.coordinator.services.startup import check_run
from bithaul.errors import Conflict, NotFound
from bithaul.exchange.messages import HeartbeatRequest, HeldoutLoss, RunState, Verdict
from bithaul.rounds.leases import TaskState
from bithaul.rounds.trust import Standing

House = Any
ENGINES = "both"
KEEP = {"retention_keep": 50}


def one_round(house: House, *, loss: float | None = None) -> None:
    """Everybody reports and the next version is made; `loss` is what ann measures of the base."""
    for name in ("ann", "bob"):
        task = house.claim(name)
        heldout = HeldoutLoss(version=task.base_version, loss=loss, tokens=9) if loss and task.probe else None
        house.report(name, task, heldout=heldout)
    house.clock.time += 10.0
    assert house.merge() is not None


def places(house: House) -> tuple[Counter[int], int]:
    """How often each position is somewhere, and the cursor."""
    with house.c.database.read() as connection:
        run = runs.get_run(connection)
        held = [t for t in work.list_tasks(connection, run.id) if t.state is not TaskState.DISCARDED]
        spans = [*work.read_free(connection, run).returned, *(s for t in held for s in t.positions)]
    return Counter(p for s in spans for p in range(s.start, s.end)), run.position_cursor


def test_old_weights_are_a_new_version_and_the_work_is_open_again(
    make_house: Callable[..., House],
) -> None:
    """Catches a rollback that forgets tokens, momentum, slices or the schedule."""
    house = make_house(settings=KEEP)
    house.create(merge_options={"mu": 0.5, "eta": 0.7}, budget_tokens=14_000)
    house.register("ann", "bob")
    one_round(house)
    progress_then, seconds_then = progress(house.c).progress, house.run.active_seconds
    momentum_then = house.newest.momentum_sha256
    one_round(house)
    one_round(house)
    back = roll_back(house.c, 2)
    assert (back.version, back.lineage, back.restored, back.discarded_tasks) == (5, 2, 2, 4)
    assert np.array_equal(house.theta(5), house.theta(2))
    assert house.newest.momentum_sha256 not in (None, momentum_then), "the same values in another version"
    assert house.newest.tokens_total == back.tokens_total == 1400
    assert progress(house.c).progress == pytest.approx(progress_then)
    assert house.run.active_seconds == seconds_then
    found, cursor = places(house)
    assert found == Counter(range(cursor)), "each position in exactly one place"
    with house.c.database.read() as connection:
        tasks = work.list_tasks(connection, house.run.id)
    children = [t for t in tasks if t.state is TaskState.PENDING]
    gone = [t for t in tasks if t.state is TaskState.DISCARDED]
    assert [c.parent for c in children] == [t.id for t in gone]
    assert [c.positions for c in children] == [t.positions for t in gone]
    check_run(house.c)
    one_round(house)
    assert (house.newest.version, house.newest.lineage, house.newest.tokens_total) == (6, 2, 2800)


def test_what_comes_from_the_old_lineage_is_stale_and_its_lease_is_over(house: House) -> None:
    """Catches an update on given-up weights that is merged into the restored ones."""
    one_round(house)
    task = house.claim("ann")
    roll_back(house.c, 1)
    beat = HeartbeatRequest(task=task.task, fence=task.fence, tokens=5, activity="training")
    assert not heartbeat(house.c, "ann", beat).lease_open
    receipt = house.report("ann", task)
    assert (receipt.verdict, receipt.code) == (Verdict.STALE, "rolled_back")
    again = house.claim("ann")
    assert (again.base_version, again.lineage) == (3, 2)
    assert house.report("ann", again, lineage=1).code == "foreign_base"
    house.clock.time += 60
    assert house.report("ann", house.claim("ann")).verdict is Verdict.ACCEPTED
    with house.c.database.read() as connection:
        credit = ledger.credits_by_worker(connection, house.run.id)["ann"]
    assert credit.credited == 3 * 700, "also the discarded and the stale one"


def test_a_report_that_waited_is_given_up_if_its_base_is(house: House) -> None:
    """Catches an accepted update of a given-up base in the next step."""
    one_round(house)
    early = house.claim("ann")
    house.report("ann", early)
    roll_back(house.c, 1)
    house.clock.time += 100
    assert house.merge() is None
    assert house.report("ann", early).verdict is Verdict.ACCEPTED, "a receipt never changes"
    with house.c.database.read() as connection:
        assert ledger.unmerged(connection, house.run.id) == []


def test_contributors_are_on_probation_and_own_machines_are_not(house: House) -> None:
    pin_worker(house.c, "bob")
    one_round(house)
    roll_back(house.c, 1)
    with house.c.database.read() as connection:
        ann, bob = fleet.get_worker(connection, "ann"), fleet.get_worker(connection, "bob")
    assert (ann.standing, ann.trust_to_go) == (Standing.PROBATION, 3)
    assert "version 1" in ann.trust_reason
    assert bob.trust.weight(house.clock.time) == 1.0


def test_where_there_is_no_way_back(make_house: Callable[..., House]) -> None:
    """Catches going back to weights that are gone, never were, or were given up before."""
    house = make_house(settings={"retention_keep": 2})
    house.create()
    house.register("ann", "bob")
    for _ in range(3):
        one_round(house)
    retain(house.c)
    with pytest.raises(NotFound, match="no weight version 9"):
        roll_back(house.c, 9)
    with pytest.raises(Conflict, match="newest"):
        roll_back(house.c, 4)
    with pytest.raises(Conflict, match=r"no longer kept; still there are: 3"):
        roll_back(house.c, 1)
    roll_back(house.c, 3)
    with pytest.raises(Conflict, match="given up"):
        roll_back(house.c, 4)
    assert roll_back(house.c, 3).version == 6


def test_a_version_made_at_the_same_time_is_given_up_too(house: House) -> None:
    """Catches a rollback that overwrites a version, and a merger that puts one on the wrong lineage."""
    one_round(house)
    made: list[int] = []

    def merge_once(name: str) -> None:
        if name == "rollback.decided" and not made:
            made.append(0)
            one_round(house)

    object.__setattr__(house.c, "crash_points", CrashPoints(merge_once))
    assert roll_back(house.c, 1).version == 4

    def back_once(name: str) -> None:
        if name == "flush.blob_written" and len(made) == 1:
            made.append(0)
            roll_back(house.c, 1)

    for name in ("ann", "bob"):
        house.report(name, house.claim(name))
    house.clock.time += 10.0
    object.__setattr__(house.c, "crash_points", CrashPoints(back_once))
    assert merge_round(house.c) is None
    assert (house.newest.version, house.newest.restores) == (5, 1)


def measured_rounds(house: House, losses: list[float]) -> None:
    for loss in losses:
        one_round(house, loss=loss)


GOOD = [3.0, 2.9, 2.8, 2.75, 2.7, 2.68, 2.66]


def test_a_jump_of_the_heldout_loss_goes_back_by_itself_once(make_house: Callable[..., House]) -> None:
    """Catches a diverged run that nobody stops, and one that goes back and forth for ever."""
    house = make_house(settings={"retention_keep": 2})
    house.create(gates=["rollback"], probe_every=1)
    house.register("ann", "bob")
    measured_rounds(house, GOOD)
    assert "jumped" not in merge_all(house.c)
    measured_rounds(house, [9.0])
    retain(house.c)
    assert "jumped" not in merge_all(house.c), "one bad measurement is no reason"
    measured_rounds(house, [9.5])
    retain(house.c)
    assert "version 7 is in force again, as 11" in merge_all(house.c)
    assert (house.newest.restores, house.newest.automatic, house.run.state) == (7, True, RunState.RUNNING)
    assert problems(house.c) == []
    assert "jumped" not in merge_all(house.c)
    measured_rounds(house, [2.66, 9.0, 9.5])
    assert "jumped" in merge_all(house.c)
    assert house.run.state is RunState.PAUSED, "the second in a row calls the operator"
    assert "jumped again" in progress(house.c).problems[0]
    resume_run(house.c)
    assert problems(house.c) == []


def test_without_the_gate_nothing_goes_back(house: House) -> None:
    with house.c.database.write() as connection:
        runs.update_run(connection, house.run.id, probe_every=1)
    measured_rounds(house, [*GOOD, 9.0, 9.5])
    merge_all(house.c)
    assert house.newest.lineage == 1


def test_a_finished_run_goes_on_after_it(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create(budget_tokens=1400)
    house.register("ann", "bob")
    for _ in range(5):
        one_round(house)
        house.merge()
        if house.run.state is RunState.FINISHED:
            break
    assert house.run.state is RunState.FINISHED
    roll_back(house.c, 1)
    assert house.run.state is RunState.RUNNING
    assert house.claim("ann").progress_start == 0.0


def test_payloads_of_a_window_that_was_given_up_are_deleted_in_time(make_house: Callable[..., House]) -> None:
    """Catches files that stay for ever because no version names them."""
    house = make_house(settings={"retention_keep": 3, "payload_keep_versions": 1})
    house.create()
    house.register("ann", "bob")
    one_round(house)
    house.report("ann", house.claim("ann"))
    roll_back(house.c, 1)
    one_round(house)
    one_round(house)
    retain(house.c)
    with house.c.database.read() as connection:
        kept = connection.execute(
            select(reports.c.seq).where(
                reports.c.discarded_in.is_not(None), reports.c.blob_sha256.is_not(None)
            )
        ).all()
        assert versions.newest_version(connection, house.run.id).version == 5
    assert kept == []
