"""What means something on PostgreSQL only: turns over processes, lost servers, errors in plain words."""

from __future__ import annotations

import builtins
import logging
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from bithaul.coordinator.commands.claim_task import claim_task
from bithaul.coordinator.commands.ingest_logs import ingest_logs
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.database import engine as engine_module
from bithaul.coordinator.database import fleet, history, logbook, postgres, runs, work
from bithaul.coordinator.database.engine import Database
from bithaul.coordinator.database.prepared import Prepared, update_row
from bithaul.coordinator.database.tables import telemetry, workers
from bithaul.coordinator.queries.health import health
from bithaul.coordinator.services import runner as runner_module
from bithaul.coordinator.services.runner import Service, ServiceRunner
from bithaul.coordinator.settings import load_settings
from bithaul.errors import Conflict, InvalidConfig, OutOfDisk, Unavailable
from bithaul.exchange.messages import LogBatch, LogEntry

House = Any
Server = Any
needs_server = pytest.mark.postgres


@pytest.fixture(name="server")
def _server(postgres: Server) -> Server:
    return postgres


@pytest.fixture
def url(server: Server) -> str:
    return str(server.fresh())


@pytest.fixture
def open_database(url: str, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Each call is what another process would have: engines of its own."""
    made: list[Database] = []

    def make() -> Database:
        made.append(Database.open(url, lock_folder=tmp_path))
        return made[-1]

    yield make
    for database in made:
        database.close()


@pytest.fixture
def database(open_database: Callable[[], Database]) -> Database:
    opened = open_database()
    with opened.write() as connection:
        fleet.insert_worker(connection, "ann", now=1.0)
    return opened


def together(*work_on: Callable[[], None]) -> None:
    """All at once, in threads; the first failure is raised."""
    failures: list[Exception] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except Exception as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in work_on]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    if failures:
        raise failures[0]


# Addresses


@pytest.mark.parametrize(
    "plain", ["postgresql://u:p@h/d", "postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"]
)
def test_a_plain_address_chooses_the_driver(plain: str) -> None:
    """Catches psycopg2, SQLAlchemy's own choice, which nobody has installed."""
    found = postgres.server_url(plain)
    assert found is not None
    assert (found.drivername, found.password, found.database) == ("postgresql+psycopg", "p", "d")


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql//u:sekrit@h/d",
        "postgresql://u:sekrit@h:port/d",
        "postgresql://u:sek@sekrit@h/d",
        "postgresql+psycopg2://u:sekrit@h/d",
        "mysql://u:sekrit@h/d",
    ],
)
def test_a_wrong_address_is_refused_without_saying_it(tmp_path: Path, wrong: str) -> None:
    """Catches a password in the message of a mistyped address."""
    with pytest.raises(InvalidConfig) as refused:
        Database.open(wrong, lock_folder=tmp_path)
    assert "database_url" in refused.value.message
    assert "sekrit" not in refused.value.message


def test_without_the_driver_one_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "psycopg":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidConfig, match="bithaul\\[postgres\\]"):
        Database.open("postgresql://u:p@127.0.0.1/d", lock_folder=tmp_path)


@needs_server
@pytest.mark.parametrize("wrong", ["password", "database", "port", "option"])
def test_a_server_that_refuses_is_named_and_the_password_is_not(
    server: Server, tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    password = "another-sekrit" if wrong == "password" else "pg-s3cret-of-the-tests"
    port = 1 if wrong == "port" else server.port
    name = "nothing" if wrong == "database" else "postgres"
    option = "?nonsense=1" if wrong == "option" else ""
    address = f"postgresql://bithaul:{password}@127.0.0.1:{port}/{name}{option}"
    with caplog.at_level(logging.DEBUG), pytest.raises((Unavailable, InvalidConfig)) as refused:
        Database.open(address, lock_folder=tmp_path)
    assert "\n" not in refused.value.message
    assert password not in refused.value.message + caplog.text


@needs_server
def test_a_user_who_may_not_make_tables_is_told_so(server: Server, tmp_path: Path) -> None:
    """Catches "the database is damaged", which it is not."""
    server.run("DROP ROLE IF EXISTS guest")
    server.run("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    address = server.fresh(migrated=False).replace("bithaul:pg-s3cret-of-the-tests", "guest:guest")
    with pytest.raises(InvalidConfig, match="owner"):
        Database.open(address, lock_folder=tmp_path)


# Turns


@needs_server
def test_writers_of_two_processes_take_turns(open_database: Callable[[], Database]) -> None:
    """Read, then write, in two processes: without a common lock both read the same number."""
    first, second = open_database(), open_database()
    with first.write() as connection:
        fleet.insert_worker(connection, "ann", now=1.0)

    def count_up(database: Database) -> Callable[[], None]:
        def work_on() -> None:
            for _ in range(20):
                with database.write() as connection:
                    failures = fleet.get_worker(connection, "ann").failures
                    fleet.update_worker(connection, "ann", failures=failures + 1)

        return work_on

    together(*(count_up(database) for database in (first, second, first, second)))
    with first.read() as connection:
        assert fleet.get_worker(connection, "ann").failures == 80


@needs_server
def test_ten_claims_at_once_in_two_processes_never_share_a_slice(
    make_house: Callable[..., House], server: Server
) -> None:
    house = make_house(settings={"database_url": server.fresh()})
    house.create()
    names = [f"w{i}" for i in range(10)]
    house.register(*names)
    other = open_coordinator(house.c.settings, clock=house.clock)
    try:
        got: dict[str, int] = {}

        def claim(name: str) -> Callable[[], None]:
            def work_on() -> None:
                claimed = claim_task(other if int(name[1:]) % 2 else house.c, name).task
                assert claimed is not None
                got[name] = claimed.task

            return work_on

        together(*(claim(name) for name in names))
    finally:
        other.close()
    assert len(set(got.values())) == 10
    with house.c.database.read() as connection:
        tasks = work.list_tasks(connection, runs.get_run(connection).id)
    spans = sorted(span for task in tasks for span in task.positions)
    assert len(tasks) == 10
    assert all(a.end <= b.start for a, b in pairwise(spans))


@needs_server
def test_a_turn_sees_what_was_decided_while_it_waited(open_database: Callable[[], Database]) -> None:
    """Catches a snapshot that is older than the turn, as REPEATABLE READ would take it."""
    first, second = open_database(), open_database()
    waiting, seen = threading.Event(), list[int]()

    def wait() -> None:
        waiting.set()
        with second.write() as connection:
            seen.append(len(fleet.list_workers(connection)))

    thread = threading.Thread(target=wait)
    with first.write() as connection:
        thread.start()
        assert waiting.wait(10)
        until_waiting(first)
        fleet.insert_worker(connection, "ann", now=1.0)
    thread.join()
    assert seen == [1]


def until_waiting(database: Database) -> None:
    for _ in range(500):
        with database.read() as connection:
            query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            if connection.execute(text(query)).scalar_one():
                return
        threading.Event().wait(0.02)
    raise AssertionError("nobody waits")


@needs_server
def test_a_turn_that_never_comes_is_said_plainly(
    open_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = open_database(), open_database()
    monkeypatch.setattr(engine_module, "WRITE_TIMEOUT", 0.2)
    with first.write(), pytest.raises(Unavailable, match="busy"), second.write():
        pass
    with second.write() as connection:
        fleet.insert_worker(connection, "ann", now=1.0)


@needs_server
def test_the_transactions_are_of_the_kinds_that_were_promised(database: Database) -> None:
    """Catches a reader that may write or sees two moments, and a receipt that does not wait for the disk."""

    def shown(connection: Any, name: str) -> str:
        return str(connection.execute(text(f"SHOW {name}")).scalar_one())

    with database.read() as connection:
        assert shown(connection, "transaction_isolation") == "repeatable read"
        assert shown(connection, "transaction_read_only") == "on"
    for durable, level in ((True, "on"), (False, "off"), (True, "on")):
        with database.write(durable=durable) as connection:
            assert shown(connection, "transaction_isolation") == "read committed"
            assert shown(connection, "synchronous_commit") == level


@needs_server
def test_two_processes_that_start_on_an_empty_database_migrate_it_once(
    server: Server, tmp_path: Path
) -> None:
    """Catches two programs with folders of their own that both make the tables."""
    address = server.fresh(migrated=False)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()

    def start(folder: Path) -> Callable[[], None]:
        return lambda: Database.open(address, lock_folder=folder).close()

    together(*(start(folder) for folder in folders))


@needs_server
def test_one_process_leads_and_another_takes_over_when_it_is_gone(
    open_database: Callable[[], Database], server: Server
) -> None:
    """Catches two coordinators in two folders that merge and delete for one database."""
    first, second = open_database(), open_database()
    assert (first.lead(), first.lead(), second.lead()) == (True, True, False)
    server.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bithaul'")
    assert (second.lead(), first.lead()) == (True, False), "a leader that was cut off must hear it"
    second.resign()
    assert first.lead()
    first.close()
    assert second.lead()


@needs_server
def test_services_of_a_second_coordinator_do_not_start_nor_go_on(
    make_house: Callable[..., House], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "LEAD_TRIES", 1)
    url = server.fresh()
    first = make_house(settings={"database_url": url})
    second = make_house(settings={"database_url": url})
    service = Service("merger", 60.0, lambda _: "done")
    runner = ServiceRunner(first.c, [service])
    runner.start()
    try:
        with pytest.raises(Conflict, match="database_url"):
            ServiceRunner(second.c, [service]).start()
        result = ServiceRunner(second.c, [service]).run_once(service)
        assert (result.ok, "Another coordinator" in result.message) == (False, True)
    finally:
        assert runner.stop()
    other = ServiceRunner(second.c, [service])
    other.start()
    assert other.stop()


# Errors


@needs_server
@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ("53100", OutOfDisk, "free some space"),
        ("53300", Unavailable, "max_connections"),
        ("53200", Unavailable, "memory"),
        ("57014", Unavailable, "busy"),
        ("40P01", Unavailable, "busy"),
        ("25006", Unavailable, "primary"),
        ("57P01", Unavailable, "stopping"),
    ],
)
def test_errors_of_the_server_are_one_plain_sentence(
    database: Database, state: str, kind: type[Exception], words: str
) -> None:
    """The server really raises them, in a statement of SQLAlchemy's and in a prepared one."""
    raises = f"DO $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '{state}'; END $$"
    for run in (lambda c: c.exec_driver_sql(raises), lambda c: Prepared(text(raises)).run(c)):
        with pytest.raises(kind, match=words), database.write() as connection:
            run(connection)
    with database.write() as connection:
        assert fleet.find_worker(connection, "ann") is not None


@needs_server
def test_a_defect_stays_a_defect_and_shows_no_values(database: Database) -> None:
    """Catches hashes and keys in the log, and a violated promise that is called a busy database."""

    def twice() -> None:
        with database.write() as connection:
            update_row(connection, workers, {"id": "ann"}, {"speed": 9.0})
            fleet.insert_worker(connection, "bob", now=1.0)
            update_row(connection, workers, {"id": "bob"}, {"trust_reason": "sekrit", "id": "ann"})

    with pytest.raises(IntegrityError) as broken:
        twice()
    assert "sekrit" not in str(broken.value)
    with pytest.raises(DBAPIError), database.read() as connection:
        fleet.insert_worker(connection, "bob", now=1.0)
    with database.read() as connection:
        assert [(w.id, w.speed) for w in fleet.list_workers(connection)] == [("ann", 0.0)]


@needs_server
def test_a_connection_that_was_cut_is_replaced_unnoticed(database: Database, server: Server) -> None:
    """Catches a coordinator that must be restarted after its database was."""
    ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bithaul'"
    server.run(ends)
    with database.write() as connection:
        fleet.insert_worker(connection, "bob", now=2.0)
    server.run(ends)
    with database.read() as connection:
        assert [worker.id for worker in fleet.list_workers(connection)] == ["ann", "bob"]

    def cut_off() -> None:
        with database.write() as connection:
            fleet.insert_worker(connection, "cid", now=2.0)
            server.run(ends)
            fleet.insert_worker(connection, "dan", now=2.0)

    with pytest.raises(Unavailable):
        cut_off()
    with database.write() as connection:
        assert [worker.id for worker in fleet.list_workers(connection)] == ["ann", "bob"]


@needs_server
def test_a_server_that_dies_is_said_plainly_and_comes_back(
    make_house: Callable[..., House], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL to all of PostgreSQL. Catches tracebacks, passwords in the log, and what was committed lost."""
    house = make_house(settings={"database_url": server.fresh()})
    house.create()
    house.register("ann")
    task = house.claim("ann")
    receipt = house.report("ann", task)
    server.kill()
    try:
        with caplog.at_level(logging.DEBUG):
            for use in (house.c.database.read, house.c.database.write):
                with pytest.raises(Unavailable, match="does not answer"), use():
                    pass
            shown = health(house.c)
            assert not shown.ok
            assert "does not answer" in str(shown.checks[0].detail)
        assert "pg-s3cret" not in caplog.text + shown.model_dump_json()
    finally:
        server.start()
    assert house.report("ann", task) == receipt
    house.clock.time += 20
    assert house.merge() is not None
    assert health(house.c).ok


# Values


@needs_server
def test_text_with_a_nul_is_stored(database: Database) -> None:
    """Catches one strange log line that costs a worker its whole batch."""
    with database.write() as connection:
        update_row(
            connection, workers, {"id": "ann"}, {"trust_reason": "a\0b", "capabilities": {"x": "a\0b"}}
        )
        connection.execute(insert(telemetry).values(time=1.0, worker="a\0b", tokens=1, tokens_per_second=1.0))
    with database.read() as connection:
        assert fleet.get_worker(connection, "ann").trust_reason == "a\N{REPLACEMENT CHARACTER}b"
        assert connection.execute(select(telemetry.c.worker)).scalar_one() == "a\N{REPLACEMENT CHARACTER}b"
        assert Prepared(select(workers.c.capabilities)).all(connection) == [({"x": "a\0b"},)]


@needs_server
def test_logs_are_found_without_case_and_by_their_letters(
    make_house: Callable[..., House], server: Server
) -> None:
    house = make_house(settings={"database_url": server.fresh()})
    house.create()
    entries = [
        LogEntry(time=1.0, level="info", event="Half 50% done", fields={"a": "x_y"}),
        LogEntry(time=2.0, level="error", event="other\0", fields={"path": "C:\\x"}),
    ]
    assert ingest_logs(house.c, "ann", LogBatch(entries=entries, dropped=0)) == 2
    with house.c.database.read() as connection:
        for words, found in (("HALF 50%", 1), ("5%d", 0), ("X_Y", 1), ("xzy", 0), ("", 2)):
            rows = logbook.page(connection, logbook.LogFilter(text=words), count=9)
            assert len(rows) == found, words
        counts = logbook.level_counts(connection, logbook.LogFilter())
        assert (counts["info"], counts["error"]) == (1, 1)
        assert [row.event for row in logbook.page(connection, logbook.LogFilter(level="error"), count=9)]


@needs_server
def test_a_moment_belongs_to_the_stretch_it_lies_in(database: Database) -> None:
    """Catches PostgreSQL's cast, which rounds: the second half of each stretch would show in the next."""
    with database.write() as connection:
        for time in (0.0, 9.9, 10.0, 19.0, 29.9):
            fleet.insert_telemetry(
                connection, time=time, worker="ann", task=1, tokens=1, tokens_per_second=1.0 + time, loss=None
            )
    with database.read() as connection:
        found = history.speed_buckets(connection, start=0.0, width=10.0, count=3)
    assert [round(value or 0.0, 3) for value in found["ann"]] == [5.95, 15.5, 30.9]


def test_the_address_may_rest_in_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "bithaul.toml").write_text('database_url = "postgresql://u:p@h/d"\n')
    assert load_settings(tmp_path).database == "postgresql://u:p@h/d"
