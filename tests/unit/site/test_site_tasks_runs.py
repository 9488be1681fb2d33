"""Tasks, runs and versions: browsing, taking back, pinning, download, ternary pictures, the try box."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from pretend import MACHINES
from sqlalchemy import select, update
from starlette.testclient import TestClient

import bithaul
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.tables import leases, reports, runs, tasks, versions
from bithaul.coordinator.identity.clients import create_client
from bithaul.coordinator.queries.blobs import weights_blob
from bithaul.coordinator.queries.machines import machines
from bithaul.coordinator.queries.runpage import run_page, version_page
from bithaul.coordinator.queries.taskbrowser import task_browser, task_page
from bithaul.coordinator.queries.ternary import ternary
from bithaul.coordinator.site import export
from bithaul.coordinator.site.environment import make_environment
from bithaul.coordinator.site.formats import ending
from bithaul.errors import InvalidInput, NotFound
from bithaul.exchange.messages import ADMIN_SCOPE
from bithaul.exchange.weights import open_weights
from bithaul.rounds.leases import Ending

NOW = 1_795_000_000.0  # the clock of these coordinators


@pytest.fixture(scope="module")
def with_weights(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(versions=12, weights=True)


@pytest.fixture
def own(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(versions=12)


def open_task(c: Coordinator) -> int:
    with c.database.read() as connection:
        return int(
            connection.execute(
                select(leases.c.task_id).where(leases.c.state == "open", leases.c.worker == "attic-nuc")
            ).scalar_one()
        )


def test_pages_of_tasks_show_each_once(c: Coordinator) -> None:
    with c.database.read() as connection:
        every = [i for (i,) in connection.execute(select(tasks.c.id).order_by(tasks.c.id.desc()))]
    seen, before = [], None
    while True:
        view = task_browser(c, before=before, count=50)
        seen += [row.id for row in view.rows]
        if view.older is None:
            break
        before = view.older
    assert seen == every


def test_tasks_are_filtered(c: Coordinator) -> None:
    leased = task_browser(c, state="leased").rows
    assert {row.worker for row in leased} == {name for name, machine in MACHINES.items() if machine.share}
    assert all(0 < row.share < 1 for row in leased)
    mine = task_browser(c, worker="lab-xeon").rows
    assert mine
    assert {row.worker for row in mine} == {"lab-xeon"}
    with pytest.raises(InvalidInput):
        task_browser(c, state="lost")


def test_a_task_taken_back_waits_for_the_next(own: Coordinator, visit) -> None:
    site, number = visit(own), open_task(own)
    answer = site.post(f"/admin/tasks/{number}/requeue")
    assert answer.status_code == 303
    view = task_page(own, number)
    assert view.task.state == "pending"
    assert view.attempts[-1].reason == "taken back by an operator"
    shown = site.get(answer.headers["location"]).text
    assert f"Task {number} was taken back" in shown
    assert site.post(f"/admin/tasks/{number}/requeue").status_code == 409
    assert site.post("/admin/tasks/999999/requeue").status_code == 404


CODES = r'(?:Ended|_NoTask|refused|Refused)\(\s*(?:LeaseOutcome\.\w+,\s*)?"(\w+)"|Verdict\.\w+, "(\w+)"'


def test_how_a_lease_ended_is_said_in_words() -> None:
    """Catches: `rejected: norm` and `weights_unavailable` shown to people, also for codes that come later."""
    root = Path(bithaul.__file__).parent
    files = ["worker/task.py", "worker/loop.py", "coordinator/commands/gates.py"]
    texts = [(root / file).read_text() for file in [*files, "coordinator/commands/submit_gradient.py"]]
    codes = {a or b for text in texts for a, b in re.findall(CODES, text)} | {str(way) for way in Ending}
    assert len(codes) > 20
    assert not {code for code in codes if ending(code) == code.replace("_", " ")}
    assert ending("rejected: norm") == "refused: the update is too long"
    assert ending("rejected: frame_sha256") == "refused: the update is damaged"
    assert ending("too_late: too_late") == "another report came first"
    assert ending("taken back by an operator") == "taken back by an operator"
    assert ending("kicked by an operator: it has not got further for 95 s") == (
        "kicked by an operator: it has not got further for 95 s"
    )
    assert ending("a_code_of_tomorrow") == "a code of tomorrow"
    assert ending("") == "–"


def test_a_task_s_page_says_how_its_leases_ended(own: Coordinator, visit) -> None:
    """Catches: a filter that no page uses."""
    number = open_task(own)
    with own.database.write() as connection:
        values = {"state": "expired", "ended_at": own.clock.now(), "reason": "rejected: norm"}
        connection.execute(update(leases).where(leases.c.task_id == number).values(values))
        connection.execute(update(tasks).where(tasks.c.id == number).values(reason="out_of_memory"))
    text = visit(own).get(f"/admin/tasks/{number}").text
    assert '<td data-label="How it ended" class="wrap">refused: the update is too long</td>' in text
    assert "<dt>Why</dt><dd>its worker has not enough memory</dd>" in text


def test_a_task_past_its_deadline_is_late(own: Coordinator) -> None:
    own.clock.time += 1000
    late = [row for row in task_browser(own, state="leased").rows if row.late]
    assert len(late) == 10


def test_versions_page_by_key(c: Coordinator, site: TestClient) -> None:
    first = run_page(c, count=50)
    second = run_page(c, before=first.older, count=50)
    assert [v.version for v in first.rows] == list(range(120, 70, -1))
    assert [v.version for v in second.rows] == list(range(70, 20, -1))
    assert [v.version for v in run_page(c, kept=True).rows] == [120, 119]
    assert first.run is not None
    assert first.run.parameters > 6_000_000
    assert len(site.get("/admin/runs.json").json()) == 120


def test_who_made_a_version_adds_up(c: Coordinator) -> None:
    view = version_page(c, 77)
    assert sum(p.tokens for p in view.contributions) == view.version.tokens
    assert sum(p.reports for p in view.contributions) == view.version.reports
    with pytest.raises(NotFound):
        version_page(c, 121)


def test_pin_and_pause(own: Coordinator, visit) -> None:
    site = visit(own)
    assert site.post("/admin/runs/12/pin").status_code == 303
    with own.database.read() as connection:
        assert connection.execute(select(versions.c.pinned).where(versions.c.version == 12)).scalar_one()
    assert site.post("/admin/runs/3/pin").status_code == 409, "its weights are gone"
    site.post("/admin/runs/12/unpin")
    answer = site.post("/admin/runs/pause")
    assert "The run is paused" in site.get(answer.headers["location"]).text
    with own.database.read() as connection:
        assert not connection.execute(select(versions.c.pinned).where(versions.c.version == 12)).scalar_one()
        assert connection.execute(select(runs.c.state)).scalar_one() == "paused"


def test_going_back_to_a_version(make_coordinator: Callable[..., Coordinator], visit) -> None:
    """One button: the old weights are the newest version, and the page says so."""
    own = make_coordinator(versions=12, weights=True)
    site = visit(own)
    newest = run_page(own).rows[0].version
    kept = [row.version for row in run_page(own).rows if row.kept and row.version != newest]
    page = site.get(f"/admin/runs/{kept[0]}").text
    assert f"Go back to version {kept[0]}?" in page
    assert "Go back to version" not in site.get(f"/admin/runs/{newest}").text
    answer = site.post(f"/admin/runs/{kept[0]}/rollback")
    assert (
        f"Version {kept[0]} is in force again, as version {newest + 1}."
        in site.get(answer.headers["location"]).text
    )
    assert run_page(own).rows[0].version == newest + 1
    assert site.post(f"/admin/runs/{newest + 1}/rollback").status_code == 409


def test_ternary_shares_are_those_of_the_weights(with_weights: Coordinator) -> None:
    """Catches: counting latent signs, one scale for the whole model, a wrong layer's span."""
    c = with_weights
    view = ternary(c, 12)
    assert (view.version, view.compared_with, len(view.layers)) == (12, 11, 5)
    with c.database.read() as connection:
        from bithaul.coordinator.database.runs import get_run

        layout = get_run(connection).layout
    vector = np.array(open_weights(weights_blob(c, 12).path, expected_count=layout.size).vector)
    zero = total = 0
    for spec, matrix in layout.views(vector):
        if spec.name.startswith("model.layers.3.") and "proj" in spec.name:
            scale = np.abs(matrix).mean()
            zero += int((np.abs(matrix) < 0.5 * scale).sum())
            total += matrix.size
    layer = view.layers[3]
    assert layer.values == total
    assert layer.zero == pytest.approx(zero / total, abs=1e-4)
    assert layer.minus + layer.zero + layer.plus == pytest.approx(1.0)
    assert sum(layer.histogram) == pytest.approx(1.0)
    assert layer.flips is not None
    assert 0.0 < layer.flips < 0.2
    assert view.layers[4].zero > view.layers[0].zero
    assert ternary(c, 11).layers[0].flips is None


def test_weights_are_downloaded_whole(with_weights: Coordinator, visit) -> None:
    site = visit(with_weights)
    answer = site.get("/admin/runs/12/weights")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == 'attachment; filename="weights-12.bgwt"'
    assert hashlib.sha256(answer.content).hexdigest() == weights_blob(with_weights, 12).sha256
    assert site.get("/admin/runs/3/weights").status_code == 404
    page = site.get("/admin/runs/12").text
    assert page.count("<figure>") == 5
    assert "flips since version 11" in page


def test_the_try_box_refuses_in_words(own: Coordinator, visit) -> None:
    site = visit(own)
    for sentence in ("", "x" * 401):
        answer = site.post("/admin/runs/try", data={"sentence": sentence}, headers={"hx-request": "true"})
        assert answer.status_code == 422
        assert "Write a sentence" in answer.text
        assert "<html" not in answer.text
        assert answer.headers["bithaul-part"] == "answer"


def test_the_try_box_answers_a_browser_without_script_with_a_page(own: Coordinator, visit) -> None:
    """Catches: an answer without a page around it, and one that forgets what was asked."""
    answer = visit(own).post("/admin/runs/try", data={"sentence": "x<b>" * 101})
    assert answer.status_code == 422
    assert answer.text.count("<h1>") == 1
    assert "Write a sentence" in answer.text
    assert "x&lt;b&gt;</textarea>" in answer.text
    assert 'hx-get="/admin/runs"' in answer.text, "a refresh does not ask again"
    assert "bithaul-part" not in answer.headers


def forms() -> list[tuple[str, str, str]]:
    """Of every form of every template: the template's name, the opening tag, what is in the form."""
    environment = make_environment(_NoAssets())  # type: ignore[arg-type]
    found = []
    for name in environment.list_templates():
        source = environment.loader.get_source(environment, name)[0]
        found += [(name, tag, body) for tag, body in re.findall(r"(<form\b.*?>)(.*?)</form>", source, re.S)]
    return found


class _NoAssets:
    def address(self, name: str) -> str:
        return name


def test_no_form_sends_its_token_in_an_address() -> None:
    """Catches: a form that only the script makes a POST; without it the token stands in the address."""
    carrying = [(name, tag) for name, tag, body in forms() if "csrf_token" in body]
    assert len(carrying) >= 8
    for name, tag in carrying:
        assert 'method="post"' in tag, (name, tag)
        assert re.search(r' action="[/{]', tag), (name, tag)
    for name, tag, body in forms():
        assert ("csrf_token" in body) == ('method="post"' in tag), (name, tag)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("tasks/1/attempts", "worker"),
        ("tasks/1/reports", "verdict"),
        ("runs/100/workers", "tokens"),
        ("workers/attic-nuc/reports", "verdict"),
        ("keys/operators", "scope"),
    ],
)
def test_the_small_tables_are_exported_too(site: TestClient, table: str, column: str) -> None:
    page = site.get("/admin/" + table.rpartition("/")[0]).text
    assert f'href="/admin/{table}.csv"' in page
    rows = site.get(f"/admin/{table}.json").json()
    written = list(csv.DictReader(io.StringIO(site.get(f"/admin/{table}.csv").text)))
    assert [str(row[column]) for row in rows] == [row[column] for row in written] != []
    assert site.get(f"/admin/{table}.xml").status_code == 404


def test_clipped_updates_are_counted(own: Coordinator, visit) -> None:
    with own.database.write() as connection:
        mine = reports.c.worker == "desk-ryzen"
        first = connection.execute(select(reports.c.seq).where(mine, reports.c.verdict == "accepted")).first()
        assert first is not None
        connection.execute(update(reports).where(reports.c.seq == first[0]).values(clip=0.5))
    assert [m.clipped for m in machines(own, only={"desk-ryzen"}).machines] == [1]
    assert "1 of the accepted ones" in visit(own).get("/admin/workers/desk-ryzen").text


def test_times_in_a_spreadsheet_are_dates(own: Coordinator, visit) -> None:
    """Catches: 1795000000.0 in a column called last_seen; and dates in JSON, where the API has numbers."""
    site = visit(own)
    create_client(own, "attic-nuc", scope="bithaul.worker")
    create_client(own, "ops", scope=ADMIN_SCOPE)
    tables = ["workers", "tasks", "runs", "logs", "keys", "keys/operators", "workers/attic-nuc/reports"]
    tables += ["tasks/1/attempts", "tasks/1/reports"]
    found = set()
    for table in (*(f"/admin/{name}" for name in tables), "/account/sessions"):
        rows = list(csv.DictReader(io.StringIO(site.get(f"{table}.csv").text)))
        assert rows, table
        for plain, row in zip(site.get(f"{table}.json").json(), rows, strict=True):
            for name, cell in row.items():
                value = plain[name]
                if isinstance(value, float) and abs(value - NOW) < 30 * 86_400:
                    assert datetime.fromisoformat(cell).timestamp() == pytest.approx(value, abs=0.001), name
                    assert cell.endswith("Z"), (table, name, cell)
                    found.add(name)
                else:
                    assert "T" not in cell or not cell.endswith("Z"), (table, name, cell)
    assert {"time", "last_seen", "registered_at", "changed_at", "received_at", "last_seen_at"} <= found
    assert export._cell("time", 1e300) == 1e300, "of a clock that is out of its mind"
