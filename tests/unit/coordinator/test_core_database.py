"""Schema, engines and settings: migrations up and down with data, one writer, readers beside it."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from bithaul.coordinator.commands.seed_tasks import seed_tasks
from bithaul.coordinator.database.engine import Database
from bithaul.coordinator.database.metadata import metadata
from bithaul.coordinator.database.migrate import downgrade, import_tables, upgrade
from bithaul.coordinator.database.tables import reports, workers
from bithaul.coordinator.settings import Settings, load_settings
from bithaul.errors import CorruptFile, InvalidConfig, OutOfDisk, Unavailable

House = Any
ENGINES = "both"


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Any:
    opened = Database.open(database_url, lock_folder=tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Any:
    opened = Database.open(f"sqlite:///{tmp_path / 'test.db'}", lock_folder=tmp_path)
    yield opened
    opened.close()


def names(database: Database) -> set[str]:
    with database.read() as connection:
        return set(inspect(connection).get_table_names())


def test_the_migrations_make_exactly_the_tables_in_use(database: Database) -> None:
    """Catches a column that is in the code and in no migration."""
    import_tables()
    with database.read() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
    assert {"clients", "signing_keys", "audit", "runs", "leases", "reports"} <= names(database)


def test_down_and_up_again_with_data(house: House) -> None:
    house.claim("ann")
    engine, folder = house.c.database.writer_engine, house.directory
    downgrade(engine, lock_folder=folder, revision="base")
    assert names(house.c.database) == {"alembic_version"}
    upgrade(engine, lock_folder=folder)
    assert "runs" in names(house.c.database)
    with pytest.raises(InvalidConfig, match="no schema revision"):
        downgrade(engine, lock_folder=folder, revision="nonsense")


def test_an_old_database_gets_credit_trust_and_lineages(house: House) -> None:
    """Catches an upgrade that slows workers who have delivered, and checks that a copied table loses."""
    house.report("ann", house.claim("ann"))
    engine, folder = house.c.database.writer_engine, house.directory
    downgrade(engine, lock_folder=folder, revision="0002")
    with house.c.database.write() as connection:
        assert "weight" not in {c["name"] for c in inspect(connection).get_columns("reports")}
        with pytest.raises(IntegrityError), connection.begin_nested():
            connection.execute(text("UPDATE reports SET verdict = 'compared'"))
    upgrade(engine, lock_folder=folder)
    with house.c.database.write() as connection:
        row = connection.execute(select(reports)).mappings().one()
        assert (row["weight"], row["clip"], row["credited"]) == (1.0, 1.0, row["tokens"])
        standing = dict(connection.execute(select(workers.c.id, workers.c.standing)).all())
        assert standing == {"ann": "steady", "bob": "probation"}
        connection.execute(text("UPDATE reports SET verdict = 'compared'"))
        for wrong in ("UPDATE reports SET verdict = 'liked'", "UPDATE reports SET lease_id = 99"):
            with pytest.raises(IntegrityError), connection.begin_nested():
                connection.execute(text(wrong))
        indexes = {i["name"]: i for i in inspect(connection).get_indexes("reports")}
        assert indexes["uq_reports_accepted_task"]["unique"]
        partial = indexes["uq_reports_accepted_task"]["dialect_options"]
        assert "verdict" in str(partial[f"{engine.dialect.name}_where"])


def test_seedings_come_and_go_with_their_tasks_kept(house: House) -> None:
    """Catches an upgrade that touches waiting tasks, and a downgrade that loses them."""
    seed_tasks(house.c, tasks=2, examples=20)
    engine, folder = house.c.database.writer_engine, house.directory
    downgrade(engine, lock_folder=folder, revision="0004")
    assert "seedings" not in names(house.c.database)
    with house.c.database.read() as connection:
        assert "seeding" not in {c["name"] for c in inspect(connection).get_columns("tasks")}
        found = connection.execute(text("SELECT state, CAST(positions AS TEXT) FROM tasks ORDER BY id")).all()
    assert [tuple(row) for row in found] == [("pending", "[[0, 20]]"), ("pending", "[[20, 20]]")]
    upgrade(engine, lock_folder=folder)
    with house.c.database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM seedings")).scalar_one() == 0
        assert connection.execute(text("SELECT seeding FROM tasks")).scalars().all() == [None, None]
    assert house.claim("ann").examples == 20


def test_a_newer_database_is_refused(tmp_path: Path, database: Database, database_url: str) -> None:
    """Catches an old program that writes into a schema it does not know."""
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InvalidConfig, match="9999"):
        Database.open(database_url, lock_folder=tmp_path)


def test_the_file_runs_as_promised(tmp_path: Path, sqlite: Database) -> None:
    """Catches a pragma that is lost: an acknowledged receipt must survive a power cut."""
    with sqlite.write() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
    with sqlite.read() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 1


def test_only_what_repeats_itself_does_not_wait_for_the_disk(sqlite: Database) -> None:
    """Catches a receipt written by the connection that a heartbeat has left in a hurry."""
    for durable, level in ((True, 2), (False, 1), (False, 1), (True, 2), (False, 1), (True, 2)):
        with sqlite.write(durable=durable) as connection:
            assert connection.execute(text("PRAGMA synchronous")).scalar_one() == level
    with pytest.raises(ZeroDivisionError), sqlite.write(durable=False):
        raise ZeroDivisionError
    with sqlite.write() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2


def worker(name: str) -> dict[str, object]:
    return {
        "id": name,
        "ready": True,
        "drained": False,
        "gone": False,
        "calibrated_speed": 0.0,
        "speed": 0.0,
        "activity": "idle",
        "failures": 0,
        "rest_until": 0.0,
        "registered_at": 0.0,
        "last_seen": 0.123456,
    }


def test_readers_never_wait_and_see_only_commits(database: Database) -> None:
    """Catches reads on the writer's connection (Q5)."""
    with database.write() as writing:
        writing.execute(insert(workers).values(**worker("a")))
        with database.read() as reading:
            assert reading.execute(select(workers.c.id)).all() == []
    with database.read() as reading:
        assert reading.execute(select(workers.c.last_seen)).scalar_one() == 0.123456, "microseconds (Q13)"


def test_an_exception_rolls_back(database: Database) -> None:
    def half() -> None:
        with database.write() as connection:
            connection.execute(insert(workers).values(**worker("a")))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    with database.read() as connection:
        assert connection.execute(select(workers.c.id)).all() == []


def test_writers_queue_instead_of_failing(database: Database) -> None:
    """Read first, write later, from eight threads: with deferred transactions most would fail at once."""
    with database.write() as connection:
        connection.execute(insert(workers).values(**worker("a")))

    def count_up() -> None:
        for _ in range(10):
            with database.write() as connection:
                old = connection.execute(select(workers.c.failures)).scalar_one()
                connection.execute(workers.update().values(failures=old + 1))

    threads = [threading.Thread(target=count_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute(select(workers.c.failures)).scalar_one() == 80


def test_a_full_disk_is_said_plainly(sqlite: Database) -> None:
    """A real SQLITE_FULL: the file may not grow any more."""
    with sqlite.write() as connection:
        connection.execute(text("PRAGMA max_page_count = 1"))  # no more than there are now
    many = [worker(f"w{i}" + "x" * 40) for i in range(2000)]
    with pytest.raises(OutOfDisk), sqlite.write() as connection:
        connection.execute(insert(workers), many)
    with sqlite.read() as connection:
        assert connection.execute(select(workers.c.id)).all() == []


def test_a_foreign_lock_is_said_plainly(tmp_path: Path, sqlite: Database) -> None:
    with sqlite.write() as connection:
        connection.execute(text("PRAGMA busy_timeout = 1"))  # a test has no five seconds to wait
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with sqlite.read() as connection:
            assert connection.execute(select(workers.c.id)).all() == []
        with pytest.raises(Unavailable, match="busy"), sqlite.write():
            pass
    finally:
        other.execute("ROLLBACK")
        other.close()
    with sqlite.write():
        pass


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////nowhere/at/all/x.db"])
def test_a_bad_address_is_said_plainly(tmp_path: Path, url: str) -> None:
    with pytest.raises((InvalidConfig, Unavailable)):
        Database.open(url, lock_folder=tmp_path)


def test_settings_come_from_arguments_then_environment_then_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bithaul.toml").write_text("port = 1111\nhost = '0.0.0.0'\nretention_keep = 9\n")
    monkeypatch.setenv("BITHAUL_PORT", "2222")
    monkeypatch.setenv("BITHAUL_HOST", "10.0.0.1")
    settings = load_settings(tmp_path, host="10.0.0.2", port=None)
    assert (settings.host, settings.port, settings.retention_keep) == ("10.0.0.2", 2222, 9)
    assert settings.base_url == "http://10.0.0.2:2222"
    assert isinstance(settings, Settings)


@pytest.mark.parametrize(
    ("content", "words"), [("ports = 1", "ports"), ("port = 'x'", "port"), ("port =", "TOML")]
)
def test_a_bad_settings_file_names_the_key(tmp_path: Path, content: str, words: str) -> None:
    """Catches a mistyped key that is silently ignored."""
    (tmp_path / "bithaul.toml").write_text(content)
    with pytest.raises(InvalidConfig, match=words):
        load_settings(tmp_path)
    with pytest.raises(InvalidConfig, match="no settings file"):
        load_settings(tmp_path, config=tmp_path / "nowhere.toml")


def test_a_file_that_is_no_database_is_named_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(CorruptFile, match="damaged"):
        Database.open(f"sqlite:///{tmp_path / 'a.db'}", lock_folder=tmp_path)
