"""The dashboard's view models without HTML, its page, and that nobody sees it unasked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from pretend import STEP
from sqlalchemy import select, update
from starlette.testclient import TestClient

from bithaul.coordinator.commands.steer import pause_run, resume_run
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.tables import leases, runs, workers
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.queries.curve import curve
from bithaul.coordinator.queries.dashboard import dashboard
from bithaul.coordinator.queries.machines import machines
from bithaul.coordinator.queries.progress import progress
from bithaul.coordinator.queries.totals import totals
from bithaul.coordinator.services.startup import note_start


@pytest.fixture(scope="module")
def long(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(versions=6000)


PAGES = [
    "/admin",
    "/admin/curve.json",
    "/admin/workers",
    "/admin/workers.csv",
    "/admin/workers/attic-nuc",
    "/admin/logs",
    "/admin/logs/tail?after=0",
    "/admin/logs.json",
]


@pytest.mark.parametrize("path", PAGES)
def test_who_is_not_signed_in_sees_nothing(site: TestClient, path: str) -> None:
    """Catches: a page or a file of data that forgot to ask who is there."""
    assert site.get(path).status_code == 200
    answer = site.get(path, headers={"cookie": ""})
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/admin/signin?next=")
    assert "attic-nuc" not in answer.text


def test_totals_are_what_the_tables_say(c: Coordinator) -> None:
    view = totals(c)
    assert (view.run, view.state, view.version) == ("truck-mate", "running", 120)
    assert (view.pending, view.leased, view.active, view.fleet) == (14, 10, 10, 12)
    assert view.done > 200
    assert view.eta_seconds is not None
    assert view.eta_seconds > 0
    assert view.tokens_per_second > 1000


def test_a_fleet_that_has_stopped_is_not_told_to_be_fast(
    make_coordinator: Callable[..., Coordinator],
) -> None:
    """Catches: "29.5k tok/s" in the morning, of machines that went away in the evening."""
    c = make_coordinator(versions=60)
    running = totals(c).tokens_per_second
    c.clock.time += STEP - 1
    assert totals(c).tokens_per_second == running, "the next version is not late yet"
    c.clock.time += 10 * STEP
    assert running / 4 < totals(c).tokens_per_second < running / 2
    c.clock.time += 86_400
    assert totals(c).tokens_per_second < running / 50
    with c.database.write() as connection:
        connection.execute(update(runs).values(state="finished"))
    assert totals(c).tokens_per_second == 0


def test_the_time_left_stands_still_with_nobody_there(
    make_coordinator: Callable[..., Coordinator], visit
) -> None:
    """Catches: "2 h 05 min" left all night, of a run whose machines went away in the evening."""
    c = make_coordinator(versions=60)
    site = visit(c)
    with c.database.write() as connection:
        connection.execute(update(workers).values(drained=True))
    assert totals(c).eta_seconds, "those that are drained finish what they hold"
    with c.database.write() as connection:
        connection.execute(update(leases).where(leases.c.state == "open").values(state="released"))
    assert (totals(c).eta_seconds, totals(c).still) == (None, True)
    assert progress(c).eta_seconds is None
    assert "stands still" in site.get("/admin/logs").text
    with c.database.write() as connection:
        connection.execute(update(workers).where(workers.c.id == "attic-nuc").values(drained=False))
    assert totals(c).eta_seconds, "a machine that waits for a task is there"
    assert "stands still" not in site.get("/admin/logs").text
    with c.database.write() as connection:
        connection.execute(update(workers).values(gone=True))
    assert totals(c).still
    pause_run(c, actor="ada")
    assert not totals(c).still, "paused is the reason then"


def test_the_time_left_stands_still_with_a_stalled_fleet(
    make_coordinator: Callable[..., Coordinator], visit
) -> None:
    """Catches: "2 h 05 min" left all night, of a run whose machines all hold tasks and get nowhere."""
    c = make_coordinator(versions=60)
    site = visit(c)
    is_open = leases.c.state == "open"
    with c.database.write() as connection:
        held = list(connection.execute(select(leases.c.worker).where(is_open)).scalars())
        connection.execute(update(workers).where(workers.c.id.not_in(held)).values(gone=True))
    assert totals(c).eta_seconds, "they get on"
    late = c.clock.now() - 900
    with c.database.write() as connection:
        connection.execute(update(leases).where(is_open).values(granted_at=late, moved_at=late))
    assert (totals(c).eta_seconds, totals(c).still) == (None, True)
    assert progress(c).eta_seconds is None
    assert "stands still" in site.get("/admin").text
    with c.database.write() as connection:
        connection.execute(update(leases).where(leases.c.worker == held[0]).values(moved_at=c.clock.now()))
    assert totals(c).eta_seconds, "one of them gets on"
    with c.database.write() as connection:
        connection.execute(update(leases).where(is_open).values(moved_at=late))
        connection.execute(update(workers).where(workers.c.id.not_in(held)).values(gone=False))
    assert totals(c).eta_seconds, "another one waits for a task"
    with c.database.write() as connection:
        connection.execute(update(workers).where(workers.c.id == held[0]).values(drained=True))
    assert totals(c).eta_seconds, "and is no less there when one that is stalled is drained"


def test_totals_without_a_run(make_coordinator: Callable[..., Coordinator], visit) -> None:
    c = make_coordinator()
    assert totals(c).run is None
    page = visit(c).get("/admin")
    assert page.status_code == 200
    assert "No run yet" in page.text


def test_a_short_curve_is_whole(c: Coordinator) -> None:
    view = curve(c)
    assert view.version == list(range(1, 121))
    assert (view.shown, view.total, view.cursor, view.whole) == (120, 120, 120, True)
    assert view.tokens == sorted(view.tokens)
    for low, mean, high in zip(view.low, view.train, view.high, strict=True):
        if mean is not None:
            assert low is not None
            assert high is not None
            assert low <= mean <= high


def test_thinning_keeps_every_spike_and_shows_real_versions_only(long: Coordinator) -> None:
    """Catches: sampling each nth point or averaging, which would lose the one outlier of the run."""
    thin, every = curve(long), curve(long, buckets=10**6)
    assert every.shown == every.total == thin.total == 6000
    assert thin.shown < 4000
    for name in ("high", "low", "heldout", "speed"):
        whole = [v for v in getattr(every, name) if v is not None]
        kept = [v for v in getattr(thin, name) if v is not None]
        assert max(kept) == max(whole), name
        assert min(kept) == min(whole), name
    known = dict(zip(every.version, every.train, strict=True))
    assert all(known[v] == loss for v, loss in zip(thin.version, thin.train, strict=True))
    spike = int(0.618 * 6000)
    assert spike in thin.version


def test_a_delta_continues_the_curve_and_repeats_late_heldout_losses(c: Coordinator) -> None:
    whole, delta = curve(c), curve(c, after=110)
    assert not delta.whole
    assert delta.cursor == 120
    assert delta.version[0] < 110
    assert delta.version[-1] == 120
    for name in ("time", "tokens", "train", "low", "high", "heldout", "speed"):
        assert getattr(delta, name)[1:] == getattr(whole, name)[-len(delta.version) + 1 :], name
    assert curve(c, after=120).total <= 31


def test_marks_tell_what_was_done_to_the_run(make_coordinator: Callable[..., Coordinator], visit) -> None:
    """Catches: a kink in the curve that nobody can explain, and marks of what does not concern the run."""
    own = make_coordinator(versions=20)
    note_start(own)
    pause_run(own, actor="ada")
    resume_run(own, actor="ada")
    with own.database.write() as connection:
        record(
            connection,
            own.clock.now(),
            actor="ada",
            action="run.rollback",
            subject="7",
            detail="as version 9",
        )
        record(connection, own.clock.now(), actor="ada", action="client.create", subject="w1")
    steered = [m.text for m in curve(own).marks if m.kind == "steered"]
    assert len(steered) == 7, "with the three of the pretended run"
    assert steered[-4:] == [
        "the coordinator started",
        "paused by ada",
        "resumed by ada",
        "rolled back to version 7 by ada",
    ]
    assert [m.time for m in curve(own).marks] == sorted(m.time for m in curve(own).marks)
    assert "start, pause, rollback" in visit(own).get("/admin").text


def test_a_range_shows_every_version_of_it(long: Coordinator) -> None:
    view = curve(long, first=3000, last=3100)
    assert view.version == list(range(3000, 3101))
    assert None not in view.speed


def test_a_stalled_worker_is_found(c: Coordinator) -> None:
    """Catches: 'running' shown for a machine that holds a task and gets nowhere."""
    states = {m.name: m.state for m in machines(c).machines}
    assert states["kitchen-laptop"] == "stalled"
    assert states["attic-nuc"] == "training"
    assert states["garage-dell"] == "uploading"
    assert states["lab-xeon"] == "gone"
    why = next(m.why for m in machines(c).machines if m.name == "kitchen-laptop")
    assert "has not got further for 2" in why


def test_a_silent_service_is_overdue(c: Coordinator) -> None:
    assert {s.state for s in dashboard(c).services} == {"ok"}
    c.clock.time += 300
    try:
        states = {s.name: s.state for s in dashboard(c).services}
    finally:
        c.clock.time -= 300
    assert states["merger"] == states["sweeper"] == "overdue"
    assert states["prune"] == "ok"


def test_the_page_carries_its_policy_and_no_inline_code(site: TestClient) -> None:
    """Catches: a style attribute, an inline script, an event attribute: each dies under the policy."""
    page = site.get("/admin")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|hx-on", page.text)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page.text))
    assert page.headers["cache-control"] == "no-store"


def test_static_files_are_packed_named_by_content_and_nothing_else(site: TestClient) -> None:
    page = site.get("/admin").text
    addresses = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
    assert len(addresses) >= 7
    wire = len(page)
    for address in addresses:
        assert "?" in address, f"{address} was not installed"
        answer = site.get(address, headers={"accept-encoding": "gzip"})
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        wire += int(answer.headers["content-length"])
    assert wire < 150_000
    for odd in ("../site.py", "vendor/", "%2e%2e/frame.py", "/etc/passwd", "nothing.css"):
        assert site.get(f"/static/{odd}").status_code == 404, odd


def test_the_curve_as_json(site: TestClient) -> None:
    answer = site.get("/admin/curve.json?after=100")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["cursor"] == 120
    assert site.get("/admin/curve.json?after=-1").status_code == 422


def test_a_refresh_of_a_long_run_is_quick(make_coordinator, visit) -> None:
    """Catches: a refresh that reads every version. Bound: three times what it takes on two slow cores."""
    site = visit(make_coordinator(versions=6000))
    for path in ("/admin", "/admin/curve.json?after=6000"):
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            assert site.get(path, headers={"HX-Request": "true"}).status_code == 200
            taken.append(time.perf_counter() - began)
        assert min(taken) < 0.1, f"{path} took {min(taken):.3f} s"
