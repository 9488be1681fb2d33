"""Background services do their work, delete the right things, and fail alone. Queries tell what happened."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.ingest_logs import ingest_logs
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import services, versions
from bithaul.coordinator.database.tables import logs, telemetry
from bithaul.coordinator.queries.blobs import corpus_blob, current_version, weights_blob
from bithaul.coordinator.queries.health import health
from bithaul.coordinator.queries.metrics import metrics
from bithaul.coordinator.queries.progress import progress
from bithaul.coordinator.queries.status import status
from bithaul.coordinator.services.disk import watch_disk
from bithaul.coordinator.services.merger import merge_all
from bithaul.coordinator.services.prune import prune
from bithaul.coordinator.services.retention import retain
from bithaul.coordinator.services.runner import Service, ServiceRunner, standard_services
from bithaul.errors import NotFound, OutOfDisk
from bithaul.exchange.messages import HeartbeatRequest, LogBatch, LogEntry

House = Any


def train(house: House, rounds: int) -> None:
    for _ in range(rounds):
        tasks = [(w, house.claim(w)) for w in ("ann", "bob")]
        for worker, task in tasks:
            house.report(worker, task)
        assert house.merge() is not None


def live(house: House) -> list[int]:
    with house.c.database.read() as connection:
        rows = versions.list_versions(connection, house.run.id)
    return [r.version for r in rows if r.retired_at is None]


def test_retention_keeps_newest_nth_pinned_and_leased(make_house: Callable[..., House]) -> None:
    """Catches a disk that fills up, and a base deleted under a worker."""
    house = make_house(settings={"retention_keep": 2, "retention_every": 5, "payload_keep_versions": 2})
    house.create(codec="int8-block-v1")
    house.register("ann", "bob", "cat")
    held = house.claim("cat")
    house.clock.time += 1
    for worker in ("ann", "bob"):
        house.report(worker, house.claim(worker))
    house.clock.time += 30
    assert house.merge() is not None
    train(house, 1)
    with house.c.database.write() as connection:
        versions.update_version(connection, house.run.id, 3, pinned=True)
    train(house, 5)
    assert held.base_version == 1
    assert retain(house.c).startswith("4 versions retired") or live(house)
    assert live(house) == [1, 3, 5, 7, 8]
    for version in live(house):
        assert weights_blob(house.c, version).path.exists()
    with pytest.raises(NotFound, match="retired"):
        weights_blob(house.c, 4)
    with pytest.raises(NotFound, match="no weight version"):
        weights_blob(house.c, 99)
    stored = {sha for sha, _ in house.c.blobs.stored()}
    assert len(stored) == 5 + 6 + 3 * 2, "versions, corpus files, and payloads of versions 6, 7 and 8"
    assert retain(house.c) == "0 versions retired, 0 blobs (0 MiB) deleted"


def test_momentum_is_kept_for_two_versions(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create(merge_options={"mu": 0.5}, codec="int8-block-v1")
    house.register("ann", "bob")
    train(house, 4)
    retain(house.c)
    with house.c.database.read() as connection:
        rows = versions.list_versions(connection, house.run.id)
    assert [r.version for r in rows if r.momentum_sha256] == [4, 5]
    for row in rows[-2:]:
        house.c.blobs.verify(row.momentum_sha256)


def test_prune_really_deletes(house: House) -> None:
    """Catches windows that are documented and never applied."""
    house.clock.time += 1.0  # of a worker one point a second is kept
    heartbeat(house.c, "ann", HeartbeatRequest(tokens=5, loss=1.0))
    entry = LogEntry(time=1.0, level="info", event="x" * 200, fields={"n": 1})
    assert ingest_logs(house.c, "ann", LogBatch(entries=[entry] * 400, dropped=3)) == 401
    path = house.directory / "coordinator.db"
    house.c.database.shrink()  # what was written is in the file now, not beside it
    full = path.stat().st_size

    def counts() -> tuple[int, int]:
        with house.c.database.read() as connection:
            return (
                connection.execute(select(func.count()).select_from(telemetry)).scalar_one(),
                connection.execute(select(func.count()).select_from(logs)).scalar_one(),
            )

    assert counts() == (1, 401)
    house.clock.time += 4 * 86_400
    prune(house.c)
    assert counts() == (1, 0)
    assert path.stat().st_size < full, "the space goes back to the disk"
    house.clock.time += 4 * 86_400
    prune(house.c)
    assert counts() == (0, 0)


def test_a_failing_service_stops_no_other(house: House) -> None:
    """Catches one exception that ends all housekeeping, and a failure nobody sees."""
    done = threading.Event()

    def broken(_c: Coordinator) -> str:
        raise RuntimeError("boom")

    def fine(_c: Coordinator) -> str:
        done.set()
        return "fine"

    runner = ServiceRunner(house.c, [Service("broken", 3600, broken), Service("fine", 3600, fine)])
    runner.start()
    assert done.wait(20), "each service runs at start, not after its interval"
    assert runner.stop()
    with house.c.database.read() as connection:
        found = {r.name: (r.ok, r.message) for r in services.list_results(connection)}
    assert found == {"broken": (False, "RuntimeError: boom"), "fine": (True, "fine")}
    view = health(house.c)
    assert not view.ok
    assert {c.name: c.ok for c in view.checks}["service.broken"] is False


def test_a_service_recovers(house: House) -> None:
    outcomes = iter([OutOfDisk("The disk is full."), None])

    def flaky(_c: Coordinator) -> str:
        problem = next(outcomes)
        if problem is not None:
            raise problem
        return "well"

    runner = ServiceRunner(house.c, [])
    first = runner.run_once(Service("flaky", 1, flaky))
    second = runner.run_once(Service("flaky", 1, flaky), before=first)
    assert (first.ok, first.message) == (False, "The disk is full.")
    assert (second.ok, second.message) == (True, "well")


def test_the_real_services_make_versions_when_woken(house: House) -> None:
    """Catches a merger that never hears of reports. Real threads; the events are awaited, not slept for."""
    made = threading.Event()

    def merge(c: Coordinator) -> str:
        message = merge_all(c)
        if message == "version 2":
            made.set()
        return message

    chosen = [
        Service(s.name, s.interval, merge, s.wake) if s.name == "merger" else s
        for s in standard_services(house.c)
    ]
    runner = ServiceRunner(house.c, chosen)
    runner.start()
    for worker, task in [(w, house.claim(w)) for w in ("ann", "bob")]:
        house.report(worker, task)
    assert made.wait(20)
    assert runner.stop()
    assert {"merger", "sweeper", "prune", "retention", "disk"} <= {
        c.name.removeprefix("service.") for c in health(house.c).checks
    }


def test_disk_watch_warns_before_uploads_fail(make_house: Callable[..., House]) -> None:
    house = make_house()
    assert "free" in watch_disk(house.c)
    house.settings["disk_reserve_bytes"] = 2**60
    house.reopen()
    with pytest.raises(OutOfDisk, match="uploads are refused"):
        watch_disk(house.c)
    assert not health(house.c).ok


def test_health_really_checks(house: House) -> None:
    """Catches a health page that says ok whatever happens."""
    view = health(house.c)
    assert view.ok, view
    assert [c.name for c in view.checks] == ["database", "blobs", "disk", "version"]
    house.c.blobs.get(house.newest.sha256).path.unlink()
    broken = {c.name: c.ok for c in health(house.c).checks}
    assert broken == {"database": True, "blobs": True, "disk": True, "version": False}


def test_queries_without_a_run_do_not_fail(make_house: Callable[..., House]) -> None:
    house = make_house()
    assert status(house.c).run_state is None
    assert health(house.c).ok
    assert metrics(house.c)
    with pytest.raises(NotFound, match="no run yet"):
        progress(house.c)


def test_queries_tell_what_happened(house: House) -> None:
    train(house, 2)
    house.claim("ann")
    shown = status(house.c)
    assert shown.tasks["merged"] == 4
    assert (shown.open_leases, shown.workers["active"], shown.version) == (1, 2, 3)
    view = progress(house.c)
    assert (view.tokens, view.versions) == (4 * 700, 3)
    assert [w.accepted for w in view.workers] == [2, 2]
    assert view.receipts["accepted"] == 4
    assert current_version(house.c).version == 3
    names = {s.name for s in metrics(house.c)}
    assert {"version", "tokens_total", "tasks", "receipts_total", "worker_tokens_per_second"} <= names
    assert corpus_blob(house.c, "train-00000", kind="data").size == 300 * 8 * 4
    assert corpus_blob(house.c, "train-00000", kind="index").size == 301 * 8
    with pytest.raises(NotFound, match="no such corpus shard"):
        corpus_blob(house.c, "../coordinator.db", kind="data")
