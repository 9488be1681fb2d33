"""Prepared statements give what SQLAlchemy gives: values, errors, transactions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, select
from sqlalchemy.exc import IntegrityError

from bithaul.coordinator.commands.round import read_outline, read_round
from bithaul.coordinator.database import fleet, runs
from bithaul.coordinator.database.engine import Database
from bithaul.coordinator.database.prepared import Prepared, insert_row, update_row
from bithaul.coordinator.database.tables import workers
from bithaul.rounds.sizing import DEFAULT_SPEED
from bithaul.rounds.trust import Standing

ENGINES = "both"


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Any:
    opened = Database.open(database_url, lock_folder=tmp_path)
    with opened.write() as connection:
        fleet.insert_worker(connection, "ann", now=1.0)
        fleet.insert_worker(connection, "bob", now=2.0)
    yield opened
    opened.close()


def test_values_come_back_as_sqlalchemy_reads_them(database: Database) -> None:
    """Catches JSON that comes back as text and booleans that come back as numbers."""
    with database.write() as connection:
        changed = update_row(
            connection, workers, {"id": "ann"}, {"capabilities": {"threads": 2}, "ready": True, "speed": 1.5}
        )
    assert changed == 1
    query = select(workers).where(workers.c.id == bindparam("who"))
    with database.read() as connection:
        usual = connection.execute(query, {"who": "ann"}).one()
        fast = Prepared(query).first(connection, who="ann")
        assert Prepared(query).first(connection, who="eve") is None
    assert fast == tuple(usual)
    assert fast is not None
    assert [type(v) for v in fast] == [type(v) for v in usual]


def test_errors_are_sqlalchemys_and_undo_the_transaction(database: Database) -> None:
    """Catches an error that no handler knows, and half a transaction that stays."""

    def twice() -> None:
        with database.write() as connection:
            update_row(connection, workers, {"id": "ann"}, {"speed": 9.0})
            fleet.insert_worker(connection, "ann", now=3.0)

    with pytest.raises(IntegrityError):
        twice()
    with database.read() as connection:
        assert fleet.get_worker(connection, "ann").speed == 0.0


def test_a_reader_sees_one_moment(database: Database) -> None:
    """Catches two statements of one query that see different states."""
    with database.read() as reader:
        before = fleet.list_workers(reader)
        with database.write() as connection:
            update_row(connection, workers, {"id": "bob"}, {"speed": 4.0})
        assert fleet.list_workers(reader) == before
    with database.read() as reader:
        assert fleet.get_worker(reader, "bob").speed == 4.0


def test_what_changes_may_be_what_finds_the_row(database: Database) -> None:
    """Catches a new value that is taken for the key."""
    with database.write() as connection:
        assert update_row(connection, workers, {"id": "bob"}, {"id": "rob"}) == 1
        assert update_row(connection, workers, {"id": "bob"}, {"speed": 1.0}) == 0
        assert update_row(connection, workers, {"id": "rob"}, {}) == 0
        insert_row(connection, workers, {**_row(connection, "rob"), "id": "cid"})
    with database.read() as connection:
        assert [w.id for w in fleet.list_workers(connection)] == ["ann", "cid", "rob"]


def _row(connection: Any, worker: str) -> dict[str, Any]:
    found = connection.execute(select(workers).where(workers.c.id == worker)).mappings().one()
    return dict(found)


def test_sums_in_the_database_are_what_python_adds_up(house: Any) -> None:
    """Catches a rule of who may work, or of whose speed counts, that is changed in one place only."""
    values: dict[str, dict[str, Any]] = {
        "measured": {"ready": True, "speed": 700.0, "calibrated_speed": 5.0},
        "calibrated": {"ready": True, "calibrated_speed": 300.0},
        "boaster": {"ready": True, "calibrated_speed": 1e15},
        "crawler": {"ready": True, "calibrated_speed": 1e-10},
        "crawled": {"ready": True, "speed": 1e-10},
        "unknown": {"ready": True},
        "new": {"speed": 1e6},
        "drained": {"ready": True, "speed": 2e6, "drained": True},
        "silent": {"ready": True, "speed": 4e6, "gone": True},
        "resting": {"ready": True, "speed": 8e6, "rest_until": house.clock.now() + 1.0},
        "rested": {"ready": True, "speed": 11.0, "rest_until": house.clock.now()},
        "aside": {"ready": True, "speed": 16e6, "standing": Standing.SET_ASIDE},
    }
    now = house.clock.now()
    with house.c.database.write() as connection:
        for name, changes in values.items():
            fleet.insert_worker(connection, name, now=now)
            update_row(connection, workers, {"id": name}, changes)
    house.claim("measured")
    with house.c.database.read() as connection:
        run = runs.get_run(connection)
        here = read_round(connection, run, now=now)
        outline = read_outline(connection, run, now=now)
        speed = fleet.fleet_speed(connection, now=now)
        idle = fleet.idle_speed(connection, now=now)
    busy = {lease.worker for lease in here.leases}
    assert busy == {"measured"}
    assert speed == pytest.approx(sum(w.planning_speed for w in here.may_work))
    assert idle == pytest.approx(sum(w.planning_speed for w in here.may_work if w.id not in busy))
    assert idle > 300.0 + DEFAULT_SPEED + 11.0
    assert outline.spent == here.spent
    assert outline.spent.leased > 0
