"""Workers and logs: filters, exports, actions with their audit rows, pages by key, counts, the tail."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from pretend import MACHINES
from sqlalchemy import insert, select, text, update
from starlette.testclient import TestClient

from bithaul import __version__
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, logbook
from bithaul.coordinator.database.tables import leases, logs, reports, scores, workers
from bithaul.coordinator.identity.tables import audit
from bithaul.coordinator.queries import logbook as logbook_query
from bithaul.coordinator.queries.logbook import log_page, log_rows, log_tail, make_filter
from bithaul.coordinator.queries.machines import state_of
from bithaul.coordinator.queries.workerpage import worker_page
from bithaul.coordinator.site import logs as site_logs
from bithaul.coordinator.site import runs as site_runs
from bithaul.coordinator.site import tasks as site_tasks
from bithaul.coordinator.site import workers as site_workers
from bithaul.errors import InvalidInput, NotFound

NOW = 1_795_000_000.0  # the clock of these coordinators
STATES = {"kitchen-laptop": "stalled", "lab-xeon": "gone"}


@pytest.fixture
def own(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(versions=12)


def last_audit(c: Coordinator) -> tuple[str, str, str]:
    with c.database.read() as connection:
        row = connection.execute(select(audit).order_by(audit.c.id.desc()).limit(1)).mappings().one()
    return row["actor"], row["action"], row["subject"]


def test_workers_are_filtered_and_exported_as_shown(site: TestClient) -> None:
    page = site.get("/admin/workers?state=training")
    assert "attic-nuc" in page.text
    assert "lab-xeon" not in page.text
    rows = list(csv.DictReader(io.StringIO(site.get("/admin/workers.csv?state=training").text)))
    assert [row["name"] for row in rows] == [
        "attic-nuc",
        "desk-ryzen",
        "hall-thinkpad",
        "loft-mini",
        "mom-desktop",
        "shed-celeron",
    ]
    found = site.get("/admin/workers.json?q=xeon").json()
    assert [(m["name"], m["state"]) for m in found] == [("lab-xeon", "gone")]
    assert site.get("/admin/workers.xml").status_code == 404


def test_the_fleet_tells_which_version_runs_where(own: Coordinator, visit) -> None:
    """Catches: one machine that was not brought up to date and that nobody can tell from the others."""
    site = visit(own)
    page = site.get("/admin/workers").text
    assert page.count(f'title="version of bithaul">{__version__}<') == len(MACHINES)
    assert "this coordinator has bithaul" not in page
    with own.database.write() as connection:
        row = connection.execute(select(workers.c.capabilities).where(workers.c.id == "attic-nuc"))
        old = row.scalar_one() | {"software": "0.0.1"}
        connection.execute(update(workers).where(workers.c.id == "attic-nuc").values(capabilities=old))
    page = site.get("/admin/workers?q=0.0.1").text
    assert f'title="this coordinator has bithaul {__version__}"' in page
    assert '<span class="badge warn">0.0.1</span>' in page
    assert page.count("<tr") == 2, "the head and the one"


def test_a_workers_page_says_why(c: Coordinator, site: TestClient) -> None:
    view = worker_page(c, "kitchen-laptop")
    assert view.machine.state == "stalled"
    assert view.reports
    assert {"accepted"} <= {r.verdict for r in view.reports}
    assert "has not got further" in site.get("/admin/workers/kitchen-laptop").text
    with pytest.raises(NotFound):
        worker_page(c, "nobody")
    assert site.get("/admin/workers/nobody").status_code == 404
    assert site.get("/admin/workers/..%2fetc").status_code in (404, 422)


def test_drain_resume_and_gone_do_it_audit_it_and_say_so(own: Coordinator, visit) -> None:
    """Catches: an action that changes nothing, leaves no trace, or shows no result."""
    site = visit(own)
    answer = site.post("/admin/workers/attic-nuc/drain")
    assert answer.status_code == 303
    assert last_audit(own) == ("ada", "worker.drain", "attic-nuc")
    shown = site.get(answer.headers["location"])
    assert "attic-nuc finishes what it has and gets no more work." in shown.text
    assert "Give attic-nuc work again?" in shown.text
    with own.database.read() as connection:
        assert connection.execute(select(workers.c.drained).where(workers.c.id == "attic-nuc")).scalar_one()
    site.post("/admin/workers/attic-nuc/resume")
    assert last_audit(own) == ("ada", "worker.resume", "attic-nuc")
    site.post("/admin/workers/kitchen-laptop/gone")
    assert last_audit(own) == ("ada", "worker.gone", "kitchen-laptop")
    with own.database.read() as connection:
        query = select(leases.c.state).where(leases.c.worker == "kitchen-laptop", leases.c.state == "open")
        assert connection.execute(query).first() is None
    assert worker_page(own, "kitchen-laptop").machine.state == "gone"


def test_what_a_state_and_a_number_mean_is_said_in_words(own: Coordinator, visit) -> None:
    """Catches: "136/0/0/1", and a reason that only a mouse finds."""
    with own.database.write() as connection:
        mine = select(reports.c.seq).where(reports.c.worker == "attic-nuc").limit(1)
        lost = {"verdict": "rejected", "reason": "It was empty.", "code": "empty"}
        connection.execute(update(reports).where(reports.c.seq == mine.scalar_subquery()).values(lost))
    machine = worker_page(own, "attic-nuc").machine
    assert machine.rejected == 1
    page = visit(own).get("/admin/workers").text
    row = row_of(page, "attic-nuc")
    assert f"{machine.accepted} accepted" in row
    assert "1 rejected" in row
    assert "clipped" not in row, "what is none is not told"
    row = row_of(page, "kitchen-laptop")
    assert "has not got further for" in re.sub(r"<[^>]*>", "", row)


def test_a_loss_score_is_shown_where_there_is_one(own: Coordinator, visit) -> None:
    """Catches: a worker that weighs less and a page that does not say why, or a score nobody finds."""
    site = visit(own)
    before = site.get("/admin/workers/attic-nuc").text.lower()
    assert "loss score" not in before, "what is none is not told"
    with own.database.write() as connection:
        report = connection.execute(
            select(reports.c.seq, reports.c.run_id, reports.c.task_id)
            .where(reports.c.worker == "attic-nuc", reports.c.verdict == "accepted")
            .order_by(reports.c.seq.desc())
        ).first()
        assert report is not None
        found = {"own": 0.01, "other": 0.02, "score": -0.31, "seconds": 1.5, "made_at": 1.0}
        row = {"report": report.seq, "run_id": report.run_id, "worker": "attic-nuc", **found}
        connection.execute(insert(scores).values(row))
        low = {"score": 0.12, "scored": 9, "pinned": False}
        connection.execute(update(workers).where(workers.c.id == "attic-nuc").values(low))
    page = re.sub(r"<[^>]*>", " ", site.get("/admin/workers/attic-nuc").text)
    assert "0.12 on average, 9 of its updates looked at" in page
    assert "loss score -0.31" in page.replace("\u2212", "-")
    assert "hardly more than on others (average score 0.12" in page
    assert "updates that are trained on the examples of its tasks" in page
    task = re.sub(r"<[^>]*>", " ", site.get(f"/admin/tasks/{report.task_id}").text)
    assert "loss score -0.31" in task.replace("\u2212", "-")


def row_of(page: str, worker: str) -> str:
    return page.partition(f'href="/admin/workers/{worker}"')[2].partition("</tr>")[0]


@pytest.mark.parametrize(
    ("path", "field"),
    [("/admin/logs", "worker"), ("/admin/tasks", "worker"), ("/admin/workers", "state")],
)
def test_a_filter_tells_what_the_address_asks_for(site: TestClient, path: str, field: str) -> None:
    """Catches: "all" in the choice above a table that shows one worker that the list has no more."""
    page = site.get(f"{path}?{field}=long-gone").text
    choice = page.partition(f'<select name="{field}">')[2].partition("</select>")[0]
    assert re.findall(r"<option[^>]* selected>([^<]*)<", choice) == ["long-gone"]
    assert choice.count("attic-nuc") <= 1
    choice = site.get(path).text.partition(f'<select name="{field}">')[2].partition("</select>")[0]
    assert "selected" not in choice


@pytest.mark.parametrize("name", ["kitchen-laptop", "lab-xeon"])
def test_a_drained_machine_is_resumed_whatever_else_it_is(own: Coordinator, visit, name: str) -> None:
    """Catches: a drained machine that is stalled or gone, which nothing shows and no button resumes."""
    site = visit(own)
    site.post(f"/admin/workers/{name}/drain")
    machine = worker_page(own, name).machine
    assert (machine.state, machine.drained) == (STATES[name], True)
    for path in (f"/admin/workers/{name}", f"/admin/workers?q={name}"):
        text = site.get(path).text
        assert f"Give {name} work again?" in text, path
        assert f"Drain {name}?" not in text, path
        assert ">drained</span>" in text, path
    site.post(f"/admin/workers/{name}/resume")
    assert not worker_page(own, name).machine.drained
    assert f"Drain {name}?" in site.get(f"/admin/workers/{name}").text


@pytest.mark.parametrize(
    ("changes", "task", "state"),
    [
        ({}, None, "idle"),
        ({}, 7, "training"),
        ({"drained": True}, None, "drained"),
        ({"drained": True}, 8, "stalled"),
        ({"drained": True}, 7, "drained"),
        ({"drained": True, "gone": True}, 8, "gone"),
        ({"gone": True}, None, "gone"),
        ({"rest_until": NOW + 30, "drained": True}, None, "drained"),
        ({"rest_until": NOW + 30}, None, "resting"),
        ({"ready": False}, None, "calibrating"),
    ],
)
def test_one_word_for_a_worker(
    c: Coordinator, changes: dict[str, object], task: int | None, state: str
) -> None:
    """Task 7 got further just now, task 8 long ago."""
    with c.database.read() as connection:
        row = next(w for w in fleet.list_workers(connection) if w.id == "desk-ryzen")
    plain = {"activity": "idle", "ready": True, "drained": False, "gone": False, "rest_until": 0.0}
    moved = NOW - (600 if task == 8 else 1)
    row = replace(row, **(plain | changes))
    assert state_of(row, task=task, moved_at=moved, patience=120, now=NOW)[0] == state


def test_a_machine_is_set_aside_restored_and_trusted(own: Coordinator, visit) -> None:
    """Catches: a button whose answer says something else than what was done."""
    site = visit(own)
    page = "/admin/workers/desk-ryzen"
    for step, standing, said in (
        ("set-aside", "set aside", "is set aside: no more work"),
        ("restore", "probation", "is on probation"),
        ("pin", "steady", "counts fully"),
    ):
        answer = site.post(f"{page}/{step}")
        assert last_audit(own) == ("ada", f"worker.{step}", "desk-ryzen")
        assert f"desk-ryzen {said}" in site.get(answer.headers["location"]).text
        machine = worker_page(own, "desk-ryzen").machine
        assert machine.standing == standing
    assert (machine.weight, machine.pinned) == (1.0, True)
    assert site.post("/admin/workers/nobody/pin").status_code == 404


def test_an_action_needs_the_token(own: Coordinator, visit) -> None:
    site = visit(own)
    answer = site.post("/admin/workers/attic-nuc/drain", headers={"x-csrf-token": "guess"})
    assert answer.status_code == 403
    with own.database.read() as connection:
        assert not connection.execute(
            select(workers.c.drained).where(workers.c.id == "attic-nuc")
        ).scalar_one()


def test_an_old_flash_says_nothing(own: Coordinator, visit) -> None:
    """Catches: a stored link that claims something was done just now."""
    site = visit(own)
    address = site.post("/admin/workers/attic-nuc/drain").headers["location"]
    own.clock.time += 600
    assert "finishes what it has and gets no more work.</" not in site.get(address).text
    assert 'role="status"' not in site.get(address).text
    assert site.get("/admin?did=999999").status_code == 200
    assert site.get("/admin?did=x%27").status_code == 200


def write_logs(c: Coordinator, *rows: tuple[str, str, str]) -> None:
    now = c.clock.now()
    values = [
        {"received_at": now, "time": now, "worker": w, "level": level, "event": event, "fields": "{}"}
        for w, level, event in rows
    ]
    with c.database.write() as connection:
        connection.execute(insert(logs), values)


def test_log_pages_by_key_show_every_entry_once(c: Coordinator) -> None:
    """Catches: offsets, which skip or repeat rows when new ones come in."""
    wanted = make_filter(c)
    with c.database.read() as connection:
        every = [i for (i,) in connection.execute(select(logs.c.id).order_by(logs.c.id.desc()))]
    seen: list[int] = []
    view = log_page(c, wanted, count=37)
    assert view.newer is None
    while True:
        seen += [line.id for line in view.lines]
        if view.older is None:
            break
        view = log_page(c, wanted, before=view.older, count=37)
        assert view.newer is not None
    assert seen == every
    back = log_page(c, wanted, after=view.newer, count=37)
    assert back.lines[-1].id == view.lines[0].id + 1


def test_filters_are_at_least_a_level_and_plain_text(make_coordinator: Callable[..., Coordinator]) -> None:
    c = make_coordinator(versions=2)
    write_logs(
        c,
        ("w1", "error", "disk 100% full"),
        ("w1", "warning", "disk 100 and full"),
        ("w2", "error", "DISK 100% FULL"),
        ("dead", "info", "last words"),
    )
    lines = log_page(c, make_filter(c, text="100% full")).lines
    assert [line.worker for line in lines] == ["w2", "w1"], "a percent sign is no wildcard"
    assert {line.level for line in log_page(c, make_filter(c, level="warning")).lines} == {"warning", "error"}
    assert [line.event for line in log_page(c, make_filter(c, worker="dead")).lines] == ["last words"]
    counts = log_page(c, make_filter(c, worker="w1", level="error")).counts
    assert counts == {"debug": 0, "info": 0, "warning": 1, "error": 1}, "counts do not hide other levels"
    with pytest.raises(InvalidInput):
        make_filter(c, level="fatal")


def test_the_tail_brings_only_what_is_new(own: Coordinator, visit) -> None:
    site = visit(own)
    newest = int(re.search(r'data-newest="(\d+)"', site.get("/admin/logs").text)[1])
    assert 'data-id="' not in site.get(f"/admin/logs/tail?after={newest}").text
    write_logs(own, ("w1", "info", "first"), ("w1", "error", "second"))
    text = site.get(f"/admin/logs/tail?after={newest}").text
    assert text.index("second") < text.index("first")
    assert "first" not in site.get(f"/admin/logs/tail?after={newest}&level=error").text
    assert len(log_tail(own, make_filter(own), after=newest).lines) == 2


def test_a_tail_never_looks_at_an_entry_twice(own: Coordinator, visit) -> None:
    """Catches: a search left open that reads all that came since, every two seconds; and one that skips."""
    site = visit(own)
    start = int(re.search(r'data-newest="(\d+)"', site.get("/admin/logs").text)[1])
    write_logs(own, *(("w1", "info", f"e{i}") for i in range(7)))
    nothing = log_tail(own, make_filter(own, text="breakfast"), after=start)
    assert (nothing.lines, nothing.newest, nothing.more) == ([], start + 7, False)
    seen, at, more = [], start, True
    while more:
        part = log_tail(own, make_filter(own, level="info"), after=at, count=3)
        seen += reversed([line.event for line in part.lines])
        at, more = part.newest, part.more
    assert seen == [f"e{i}" for i in range(7)]
    assert at == start + 7
    answer = site.get(f"/admin/logs/tail?after={start}&q=breakfast")
    assert answer.headers["bithaul-newest"] == str(start + 7)
    assert "bithaul-more" not in answer.headers


def test_hostile_words_appear_as_text(own: Coordinator, visit) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>{{7*7}}'
    with own.database.write() as connection:
        connection.execute(
            insert(logs),
            [
                {
                    "received_at": own.clock.now(),
                    "time": own.clock.now(),
                    "worker": "attic-nuc",
                    "level": "error",
                    "event": evil,
                    "fields": json.dumps({"=cmd": evil}),
                }
            ],
        )
    site = visit(own)
    for path in ("/admin/logs", "/admin/workers/attic-nuc", "/admin/logs?q=%3Cscript%3E"):
        page = site.get(path).text
        assert "<script>alert" not in page, path
        assert "<img src=x" not in page, path
        assert "&lt;script&gt;" in page, path


def test_a_spreadsheet_runs_no_log_entry(own: Coordinator, visit) -> None:
    write_logs(own, ("w1", "info", '=HYPERLINK("http://evil")'))
    rows = list(csv.DictReader(io.StringIO(visit(own).get("/admin/logs.csv?worker=w1").text)))
    assert [row["event"] for row in rows] == ['\'=HYPERLINK("http://evil")']


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_file_holds_all_rows_that_match(
    own: Coordinator, visit, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Wrong result: a file that ends at some thousand rows without a word, or at the page that is shown."""
    monkeypatch.setattr(site_logs, "PAGE", 7)
    write_logs(own, *(("w1" if i % 3 else "w2", "info", f"said {i}") for i in range(60)))
    site = visit(own)
    older = site.get("/admin/logs?worker=w1&before=40").text
    assert f'href="/admin/logs.{kind}?worker=w1"' in older
    for worker, wanted in (
        ("w1", [i for i in range(60) if i % 3]),
        ("w2", list(range(0, 60, 3))),
        ("w3", []),
    ):
        answer = site.get(f"/admin/logs.{kind}?worker={worker}")
        rows = json.loads(answer.text) if kind == "json" else list(csv.DictReader(io.StringIO(answer.text)))
        assert [row["event"] for row in rows] == [f"said {i}" for i in reversed(wanted)], worker
        assert f'filename="logs.{kind}"' in answer.headers["content-disposition"]
    assert site.get(f"/admin/logs.{kind}?level=loud").status_code == 422


@pytest.mark.parametrize(("table", "key"), [("workers", "name"), ("tasks", "id"), ("runs", "version")])
def test_other_tables_are_read_to_their_end_too(
    own: Coordinator, visit, monkeypatch: pytest.MonkeyPatch, table: str, key: str
) -> None:
    module = {"workers": site_workers, "tasks": site_tasks, "runs": site_runs}[table]
    site = visit(own)
    whole = json.loads(site.get(f"/admin/{table}.json").text)
    assert len(whole) > 4
    monkeypatch.setattr(module, "PAGE", 2)
    in_parts = json.loads(site.get(f"/admin/{table}.json").text)
    assert [row[key] for row in in_parts] == [row[key] for row in whole]


def test_a_million_rows_page_as_fast_as_a_thousand(make_coordinator: Callable[..., Coordinator]) -> None:
    """Catches: counting or scanning everything for one page. Bound: 10 times what it takes here."""
    c = make_coordinator(versions=2)
    fill = text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) "
        "INSERT INTO logs (received_at, time, worker, level, event, fields) SELECT :now - 1000000 + i, :now, "
        "'w' || (i % 50), CASE WHEN i % 997 = 0 THEN 'error' ELSE 'info' END, 'event ' || i, '{}' FROM n"
    )
    with c.database.write() as connection:
        connection.execute(fill, {"now": c.clock.now()})
    for wanted, before in (
        (make_filter(c), None),
        (make_filter(c), 500_000),
        (make_filter(c, worker="w7"), 500_000),
        (make_filter(c, level="error"), 500_000),
        (make_filter(c, text="said nowhere"), None),
    ):
        began = time.perf_counter()
        view = log_page(c, wanted, before=before)
        taken = time.perf_counter() - began
        assert len(view.lines) == (0 if wanted.text else 200)
        assert taken < 2.0, f"{wanted} took {taken:.2f} s"
    assert view.searched_to is not None
    assert view.older is not None, "what was not searched yet is a click away"


def test_counts_end_at_a_bound_and_never_contradict_the_rows(
    own: Coordinator, visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: "more than 0 error" above rows that are errors."""
    monkeypatch.setattr(logbook, "MOST_COUNTED", 50)
    monkeypatch.setattr(logbook_query, "MOST_COUNTED", 50)
    write_logs(own, ("w9", "error", "first"), *(("w9", "info", "hay") for _ in range(60)))
    write_logs(own, *(("w9", "warning", "hm") for _ in range(50)))
    view = log_page(own, make_filter(own, worker="w9", level="error"))
    assert [line.event for line in view.lines] == ["first"]
    assert view.counts == {"debug": 0, "info": 50, "warning": 50, "error": 1}
    assert view.more == ["info"]
    text = visit(own).get("/admin/logs?worker=w9&level=error").text
    assert ">more than 50 info<" in text
    assert ">50 warning<" in text
    assert ">1 error<" in text
    both = log_page(own, make_filter(own, worker="w9", level="warning"), count=51)
    assert [line.level for line in both.lines] == ["warning"] * 50 + ["error"]
    assert log_page(own, make_filter(own, worker="w9", level="error", period="15m")).counts["info"] == 50


def test_a_search_goes_on_where_it_stopped_and_finds_everything_once(
    make_coordinator: Callable[..., Coordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: matches between two stretches that no page shows, and an end that is none."""
    monkeypatch.setattr(logbook, "MOST_SEARCHED", 40)
    c = make_coordinator(versions=2)
    write_logs(c, *(("w1", "info", "needle" if i % 23 == 0 or i > 496 else "hay") for i in range(500)))
    wanted = make_filter(c, text="needle")
    seen: list[int] = []
    view, pages = log_page(c, wanted, count=2), 1
    assert view.newer is None
    while view.older is not None:
        seen += [line.id for line in view.lines]
        view, pages = log_page(c, wanted, before=view.older, count=2), pages + 1
        assert view.newer is not None
    seen += [line.id for line in view.lines]
    assert seen == [line.id for line in log_rows(c, wanted, count=100)]
    assert len(seen) == 25
    assert pages > 10
    assert view.searched_to is None, "it looked at all there are"
    up: list[int] = []
    step = log_page(c, wanted, after=0, count=2)
    for _ in range(100):
        up += [line.id for line in reversed(step.lines)]
        if step.newer is None:
            break
        step = log_page(c, wanted, after=step.newer, count=2)
    assert up == seen[::-1], "and the other way"


def test_a_search_that_stopped_says_so(own: Coordinator, visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logbook, "MOST_SEARCHED", 3)
    write_logs(own, *(("w1", "info", "hay") for _ in range(9)))
    text = visit(own).get("/admin/logs?q=said+nowhere").text
    assert "Searched back to" in text
    assert "Search older entries" in text
    assert "before=" in text
