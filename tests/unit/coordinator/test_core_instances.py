"""One key is one machine: who is let in, who waits, and what becomes of what the other one held."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import inspect, text

from bithaul.coordinator.commands.claim_task import claim_task
from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.steer import call_gone, drain_worker
from bithaul.coordinator.database import fleet, work
from bithaul.coordinator.database.migrate import downgrade, upgrade
from bithaul.errors import Conflict, Gone
from bithaul.exchange.messages import HeartbeatRequest, RegisterRequest, Verdict
from bithaul.rounds.leases import LeaseState, TaskState

House = Any
ENGINES = "both"
ATTIC, DESK = "a" * 32, "d" * 32


@pytest.fixture
def attic(house: House) -> House:
    """The machine in the attic is `ann`."""
    house.register("ann", instance=ATTIC)
    return house


def refused(house: House, instance: str = DESK) -> str:
    with pytest.raises(Conflict) as caught:
        house.register("ann", instance=instance)
    assert (caught.value.http_status, caught.value.error_code) == (409, "identity_in_use")
    return caught.value.message


def held(house: House) -> list[str]:
    with house.c.database.read() as connection:
        return [lease.fence for lease in work.open_leases(connection, house.run.id, worker="ann")]


def row_of(house: House) -> fleet.WorkerRow:
    with house.c.database.read() as connection:
        return fleet.get_worker(connection, "ann")


def silence(house: House, seconds: float) -> None:
    """`ann` was heard so many seconds ago."""
    house.clock.time = row_of(house).last_seen + seconds


def test_a_second_machine_waits_while_the_first_is_alive(attic: House) -> None:
    """Catches two machines with one key that train the same task."""
    task = claim_task(attic.c, "ann", instance=ATTIC).task
    before = row_of(attic)
    said = refused(attic)
    assert "ann" in said
    assert "a key for each machine" in said
    assert "wait 60 s" in said
    silence(attic, 60.0)
    refused(attic)
    assert row_of(attic) == before  # who is refused was not heard
    assert held(attic) == [task.fence]
    heartbeat(attic.c, "ann", HeartbeatRequest(), instance=ATTIC)
    silence(attic, 59.0)
    refused(attic)


def test_a_restart_of_the_same_machine_is_let_in_at_once(attic: House) -> None:
    """Catches a killed worker that waits for its own death to be noticed."""
    task = claim_task(attic.c, "ann", instance=ATTIC).task
    attic.register("ann", instance=ATTIC)
    assert claim_task(attic.c, "ann", instance=ATTIC).task.fence == task.fence


@pytest.mark.parametrize("how", ["silent", "marked"])
def test_who_is_gone_is_replaced(attic: House, how: str) -> None:
    """Catches a key that is lost with its machine, and one task trained twice under one fence."""
    old = claim_task(attic.c, "ann", instance=ATTIC).task
    if how == "silent":
        silence(attic, 60.1)
    else:
        call_gone(attic.c, "ann")
    attic.register("ann", instance=DESK)
    assert held(attic) == []
    with attic.c.database.read() as connection:
        task = work.get_task(connection, old.task)
        assert (task.state, task.failed_by) == (TaskState.PENDING, ())
        assert work.find_lease(connection, "ann", task=old.task, fence=old.fence).state is not LeaseState.OPEN
    new = claim_task(attic.c, "ann", instance=DESK).task
    assert new.fence != old.fence
    assert refused(attic, ATTIC)


def test_who_was_replaced_must_register_again(attic: House) -> None:
    """Catches a machine that wakes up and is handed what another one trains."""
    silence(attic, 60.1)
    attic.register("ann", instance=DESK)
    seen = row_of(attic).last_seen
    attic.clock.time += 30.0
    with pytest.raises(Gone, match="Another machine"):
        heartbeat(attic.c, "ann", HeartbeatRequest(), instance=ATTIC)
    with pytest.raises(Gone):
        claim_task(attic.c, "ann", instance=ATTIC)
    assert row_of(attic).last_seen == seen  # its words do not keep the other one alive
    assert claim_task(attic.c, "ann", instance=DESK).task is not None
    silence(attic, 60.1)
    attic.register("ann", instance=ATTIC)
    assert claim_task(attic.c, "ann", instance=ATTIC).task is not None


def test_what_the_replaced_one_has_finished_still_counts(attic: House) -> None:
    """Catches a finished update that is lost with the key, and one that counts twice."""
    old = claim_task(attic.c, "ann", instance=ATTIC).task
    silence(attic, 60.1)
    attic.register("ann", instance=DESK)
    new = claim_task(attic.c, "ann", instance=DESK).task
    assert new.task == old.task  # it went back to the queue
    assert attic.report("ann", old).verdict is Verdict.ACCEPTED
    assert held(attic) == []  # superseded
    assert attic.report("ann", new).verdict is Verdict.TOO_LATE


def test_software_without_instances_works_as_before(attic: House) -> None:
    """Catches an update of the coordinator that locks out all its workers."""
    task = claim_task(attic.c, "ann", instance=ATTIC).task
    attic.register("ann")
    assert claim_task(attic.c, "ann").task.fence == task.fence
    assert heartbeat(attic.c, "ann", HeartbeatRequest()).drain is False
    assert row_of(attic).instance == ATTIC
    attic.register("bob", instance=DESK)  # who registered without one has one now, and keeps its lease
    assert claim_task(attic.c, "bob", instance=DESK).task is not None


def test_a_drain_outlives_the_machine(attic: House) -> None:
    drain_worker(attic.c, "ann", on=True)
    silence(attic, 60.1)
    attic.register("ann", instance=DESK)
    assert row_of(attic).drained
    assert claim_task(attic.c, "ann", instance=DESK).task is None


def test_an_instance_is_32_hex_digits() -> None:
    for wrong in ("", "a" * 31, "A" * 32, "a" * 32 + "\n"):
        with pytest.raises(ValidationError):
            RegisterRequest(codecs=["fp32-v1"], weight_formats=["weights-v1"], instance=wrong)


def test_an_old_database_knows_no_instances(attic: House) -> None:
    """Catches an upgrade after which a worker is refused as its own double."""
    engine, folder = attic.c.database.writer_engine, attic.directory
    downgrade(engine, lock_folder=folder, revision="0014")
    with attic.c.database.read() as connection:
        assert "instance" not in {c["name"] for c in inspect(connection).get_columns("workers")}
    upgrade(engine, lock_folder=folder)
    with attic.c.database.read() as connection:
        assert connection.execute(text("SELECT instance FROM workers")).scalars().all() == [None, None]
    attic.register("ann", instance=DESK)
    refused(attic, ATTIC)
