"""The site with a thousand machines: what a refresh reads, and pages that stay of one size."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from large import crowd
from sqlalchemy import event, update
from starlette.testclient import TestClient

from bithaul.coordinator.app import create_app
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.tables import leases
from bithaul.coordinator.queries.dashboard import STALLED, WORKERS, dashboard
from bithaul.coordinator.queries.machines import machines
from bithaul.coordinator.queries.totals import totals
from bithaul.coordinator.site.environment import make_environment
from bithaul.coordinator.site.pages import Pages
from bithaul.coordinator.site.warmup import warm_up

MACHINES = 288
RunApart = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def large(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    c = make_coordinator(versions=12)
    crowd(c, machines=MACHINES, entries=100, points=2 * MACHINES)
    return c


@pytest.fixture(scope="module")
def site(large: Coordinator, visit: Callable[[Coordinator], TestClient]) -> TestClient:
    return visit(large)


@contextmanager
def statements(c: Coordinator) -> Iterator[list[str]]:
    """What SQLite is asked meanwhile, also by statements that bypass SQLAlchemy."""
    asked: list[str] = []

    def listen(connection: object, *_: object) -> None:
        connection.set_trace_callback(asked.append)  # type: ignore[attr-defined]

    def deafen(connection: object, *_: object) -> None:
        connection.set_trace_callback(None)  # type: ignore[attr-defined]

    with c.database.read() as connection:
        engine = connection.engine
    event.listen(engine, "checkout", listen)
    event.listen(engine, "checkin", deafen)
    try:
        yield asked
    finally:
        event.remove(engine, "checkout", listen)
        event.remove(engine, "checkin", deafen)


def test_a_refresh_of_the_dashboard_reads_no_history(large: Coordinator) -> None:
    """Catches: metric points or the whole ledger read every five seconds by every viewer."""
    with statements(large) as asked:
        dashboard(large)
        totals(large)
    assert any("FROM leases" in s for s in asked), "the trace hears"
    assert [s for s in asked if "telemetry" in s] == []
    assert [s for s in asked if "reports" in s and "LIMIT" not in s] == []


def test_of_a_large_fleet_the_dashboard_names_those_who_need_somebody(
    large: Coordinator, site: TestClient
) -> None:
    view = dashboard(large)
    assert view.workers_total == 300
    assert len(view.workers) == WORKERS
    assert [m.state for m in view.workers[:2]] == ["stalled", "resting"]
    assert sum(view.states.values()) == 300
    assert "12 of 300" in site.get("/admin").text


def test_many_stalled_machines_are_counted_not_listed(
    make_coordinator: Callable[..., Coordinator], visit
) -> None:
    """Catches: three hundred warnings above the curve when the network is down."""
    own = make_coordinator(versions=12)
    crowd(own, machines=30, entries=1, points=30)
    with own.database.write() as connection:
        connection.execute(update(leases).values(moved_at=own.clock.now() - 900))
    text = visit(own).get("/admin").text
    notes = text.partition('id="notices"')[2].partition('class="grid"')[0]
    assert notes.count('class="note') == 1, "one note, whatever their number"
    assert '<div role="status"><details class="note warn" id="stalled">' in notes, "told to who listens"
    said = notes.partition('id="stalled"')[2].partition("</summary>")
    assert f"{30 + 8} workers run without progress." in said[0]
    assert said[2].count("has not got further for") == STALLED
    assert 'href="/admin/workers?state=stalled">All 38<' in said[2]


def test_workers_come_in_pages_and_are_exported_whole(site: TestClient) -> None:
    seen: list[str] = []
    address = "/admin/workers?state=training"
    while address:
        text = site.get(address).text
        names = [part.partition('"')[0] for part in text.split('<a href="/admin/workers/')[1:]]
        seen += names
        assert len(names) <= 100
        address = text.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0]
        address = address.replace("&amp;", "&") if 'rel="next"' in text else ""
    rows = list(csv.DictReader(io.StringIO(site.get("/admin/workers.csv?state=training").text)))
    assert seen == [row["name"] for row in rows]
    assert len(seen) == len(set(seen)) == MACHINES + 6


def test_the_share_is_of_all_workers_not_of_the_page(large: Coordinator) -> None:
    whole = {m.name: m.share for m in machines(large).machines}
    some = machines(large, only={"desk-ryzen"}).machines
    assert [m.share for m in some] == [whole["desk-ryzen"]] != [1.0]


def test_warming_up_leaves_nothing_to_compile(large: Coordinator, run_apart: RunApart) -> None:
    """Catches: a first visitor who waits for templates and statements, and a warm-up that fails unseen."""
    environment = make_environment(assets=_NoAssets())  # type: ignore[arg-type]
    pages = Pages(large.settings, environment)
    run_apart(warm_up(create_app(large), large, pages))
    assert environment.cache is not None
    assert len(environment.cache) == len(environment.list_templates())


def test_warming_up_needs_no_run(make_coordinator: Callable[..., Coordinator], run_apart: RunApart) -> None:
    own = make_coordinator()
    run_apart(warm_up(create_app(own), own, Pages(own.settings, make_environment(_NoAssets()))))  # type: ignore[arg-type]


class _NoAssets:
    def address(self, name: str) -> str:
        return name
