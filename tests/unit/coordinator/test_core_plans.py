"""What a claim, a heartbeat, a report and a merge ask of the database costs the same after a year of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, insert

from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.steer import pause_run
from bithaul.coordinator.database import history, logbook, scores
from bithaul.coordinator.database.logbook import LEVELS, LogFilter
from bithaul.coordinator.database.tables import logs
from bithaul.coordinator.queries.actions import newest_action
from bithaul.coordinator.queries.curve import curve
from bithaul.exchange.messages import HeartbeatRequest

House = Any
GROWING = ("leases", "reports", "tasks", "versions", "logs", "telemetry")
SCAN = re.compile(
    rf"^SCAN ({'|'.join(GROWING)})\b"
    # A folder has one run, so its number, and that of the good verdict, choose nearly every row.
    r"|^SEARCH (leases|reports|tasks) USING (COVERING )?INDEX \S+ \(run_id=\?( AND verdict=\?)?\)"
)
NEWEST = "ix_reports_run_seq"  # read from its end, as far as a limit goes


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    """With every gate on: what looks back looks back."""
    found = make_house()
    found.create(gates=["norm", "speed", "copy", "rollback"])
    found.register("ann", "bob")
    return found


@pytest.fixture
def asked(house: House) -> Iterator[list[str]]:
    """Every statement that the coordinator's connections run, with its values in it."""
    found: list[str] = []

    def listen(connection: Any, *_: Any) -> None:
        connection.set_trace_callback(found.append)

    engines = (house.c.database._reader, house.c.database.writer_engine)
    for engine in engines:
        event.listen(engine, "checkout", listen)
    house.c.database._kept.connection.driver_connection.set_trace_callback(found.append)
    yield found
    for engine in engines:
        event.remove(engine, "checkout", listen)


def plans(house: House, statements: list[str]) -> Iterator[tuple[str, str]]:
    """Lines of SQLite's plan of each statement."""
    with house.c.database.read() as connection:
        for statement in dict.fromkeys(statements):
            if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement.replace('%', '%%')}"):
                    yield statement, str(row[3])


def work(house: House) -> None:
    """Two workers through two rounds, with heartbeats, polls and a report that is sent twice."""
    for value in (1.0, 2.0):
        tasks = {worker: house.claim(worker) for worker in ("ann", "bob")}
        for worker, task in tasks.items():
            beat = HeartbeatRequest(task=task.task, fence=task.fence, tokens=10, tokens_per_second=5.0)
            heartbeat(house.c, worker, beat)
            house.clock.time += 5
            frame = house.frame(task, update=np.full(house.run.layout.size, value))
            house.send(worker, task, frame)
            house.send(worker, task, frame)
        house.try_claim("ann")
        house.clock.time += 60
        assert house.merge() is not None


def test_nothing_reads_a_whole_history(house: House, asked: list[str]) -> None:
    """Catches a statement that goes through every lease or report there ever was."""
    work(house)
    assert len(asked) > 50
    scans = [
        (plan, statement)
        for statement, plan in plans(house, asked)
        if SCAN.search(plan) and not (NEWEST in plan and " LIMIT " in statement)
    ]
    assert scans == []


def test_nothing_sorts_a_whole_history(house: House, asked: list[str]) -> None:
    """Catches the newest 64 reports found by sorting all. Open leases are few and may be sorted."""
    work(house)
    sorts = [
        statement
        for statement, plan in plans(house, asked)
        if "TEMP B-TREE" in plan
        and re.search(rf"FROM ({'|'.join(GROWING)})\b", statement)
        and "leases.state = 'open'" not in statement
    ]
    assert sorts == []


def test_what_waits_for_a_score_is_found_among_the_few(house: House, asked: list[str]) -> None:
    """Catches a service that goes through every report there ever was, each two seconds."""
    work(house)
    asked.clear()
    with house.c.database.write() as connection:
        scores.waiting(connection, house.run.id)
        scores.last(connection, house.run.id)
        scores.give_up_lost(connection, house.run.id)
    found = [plan for statement, plan in plans(house, asked) if re.search(r"\b(reports|scores)\b", plan)]
    assert len(found) == 3
    assert all(re.search(r"INDEX ix_(reports_to_score|scores_made)\b", plan) for plan in found), found
    assert not any("TEMP B-TREE" in plan for _, plan in plans(house, asked))


def test_a_copy_is_looked_up_by_its_hash(house: House, asked: list[str]) -> None:
    """Catches a planner that prefers to look through every accepted report of the run."""
    work(house)
    hashed = [plan for statement, plan in plans(house, asked) if "payload_sha256 = " in statement]
    assert any("ix_reports_payload_run" in plan for plan in hashed)


@pytest.mark.parametrize("since", [None, 5.0])
@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (LogFilter(level="error"), "ix_logs_level (level=?"),
        (LogFilter(level="warning"), "ix_logs_level (level=?"),
        (LogFilter(worker="ann"), "ix_logs_worker_level (worker=? AND level=?"),
        (LogFilter(worker="ann", level="error"), "ix_logs_worker_level (worker=? AND level=?"),
    ],
)
def test_log_entries_are_read_in_the_order_of_an_index(
    house: House, asked: list[str], wanted: LogFilter, index: str, since: float | None
) -> None:
    """Catches: a million entries looked at for the few errors among them, to show them or to count them."""
    with house.c.database.write() as connection:
        values = {"received_at": 9.0, "time": 9.0, "worker": "ann", "event": "x", "fields": "{}"}
        connection.execute(insert(logs), [values | {"level": level} for level in LEVELS])
    wanted = replace(wanted, since=since)
    with house.c.database.read() as connection:
        asked.clear()
        assert logbook.page(connection, wanted, count=9)
        assert logbook.page(connection, wanted, count=9, before=5)
        logbook.page(connection, wanted, count=9, after=1)
        assert sum(logbook.level_counts(connection, wanted).values()) == 4
    read = [plan for statement, plan in plans(house, asked) if "logs.event" in statement]
    counted = [plan for statement, plan in plans(house, asked) if "count(*)" in statement]
    assert read
    assert [plan for plan in read if index not in plan] == []
    assert [
        plan for plan in counted if re.search(r"(SCAN|SEARCH) logs\b(?!.*ix_logs_\w*level \()", plan)
    ] == []
    assert len([plan for plan in counted if "ix_logs" in plan]) == len(LEVELS)


def test_what_pages_ask_of_the_past_is_found_by_an_index(house: House, asked: list[str]) -> None:
    """Catches: a ledger or audit log looked through for a flash, marks of the curve, or a task's reports."""
    work(house)
    pause_run(house.c, actor="ada")
    with house.c.database.read() as connection:
        asked.clear()
        newest_action(house.c, "ada")
        curve(house.c)
        history.rejections(connection, 1, count=6)
        history.reports_of(connection, 1, count=20, task=3)
    found = [(plan, statement) for statement, plan in plans(house, asked)]
    scans = [both for both in found if re.match(r"SCAN (audit|reports)\b", both[0])]
    assert scans == []
    wanted = {
        "audit.actor =": "ix_audit_actor (actor=?",
        "audit.action IN": "ix_audit_action (action=?",
        "verdict != 'accepted'": "ix_reports_refused (run_id=?",
        "reports.task_id =": "ix_reports_task (task_id=?",
    }
    for words, index in wanted.items():
        mine = [plan for plan, statement in found if words in statement]
        assert any(index in plan for plan in mine), (words, mine)
        assert words != "verdict != 'accepted'" or not any("B-TREE" in plan for plan in mine), "no sorting"
    assert "!= 'accepted'" in str(history._REFUSED), "a bound value would hide the partial index"


def test_the_check_itself_sees_a_scan(
    make_house: Callable[..., House], asked: list[str], house: House
) -> None:
    with house.c.database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM leases WHERE reason = 'none'").fetchall()
    assert [plan for _, plan in plans(house, asked) if SCAN.search(plan)]
