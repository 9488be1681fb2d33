"""Pages of the queue: seed with preview and undo, kick what is stuck. Queries first, then what pages do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from pretend import MACHINES
from sqlalchemy import func, insert, select
from starlette.testclient import TestClient

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.tables import leases, seedings, tasks, workers
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.queries.seeding import seeding_preview, seedings_view
from bithaul.coordinator.queries.stuck import stuck_tasks
from bithaul.coordinator.queries.taskbrowser import task_browser, task_page

ASK = {"tasks": "20", "examples": "640"}


@pytest.fixture
def own(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(versions=60)


def form_of(page: str) -> dict[str, str]:
    """What the preview's button sends."""
    form = page[page.index('action="/admin/tasks/seed" class="body actions"') :]
    hidden = re.findall(r'name="(\w+)" value="([^"]*)"', form[: form.index("</form>")])
    return {name: value for name, value in hidden if name != "csrf_token"}


def count_of(c: Coordinator, state: str) -> int:
    return task_browser(c).counts[state]


def test_the_preview_is_read_without_a_page(own: Coordinator) -> None:
    working = [m for m in MACHINES.values() if not m.changed]  # not drained, gone or resting
    middling = sorted(m.speed for m in working)[len(working) // 2]
    view = seeding_preview(own, tasks=20, examples=640)
    assert view.tokens == 20 * 640 * 24.0
    assert view.passes == 0.256
    assert view.seconds == pytest.approx(view.tokens / sum(m.speed for m in working))
    assert view.task_seconds == 640 * 24 / middling
    with pytest.raises(ValueError, match="frozen"):
        view.tasks = 3
    page = seedings_view(own)
    assert (page.suggested_tasks, page.batch_examples) == (4 * len(working), 64)
    assert page.suggested_examples == round(middling * 600 / 24 / 64) * 64


def test_seeding_and_undoing_by_the_pages(own: Coordinator, visit) -> None:
    """Catches a preview that changes something, a button that does something else, an undo of too much."""
    site: TestClient = visit(own)
    waiting = count_of(own, "pending")
    assert "Choose how many" in site.get("/admin/tasks/seed").text
    page = site.get("/admin/tasks/seed", params=ASK).text
    assert "20 tasks of 640 examples" in page
    assert "0.26 over the corpus" in page
    assert "at the fleet&#39;s present speed" in page or "at the fleet's present speed" in page
    assert count_of(own, "pending") == waiting
    answer = site.post("/admin/tasks/seed", data=form_of(page))
    assert answer.status_code == 303
    shown = site.get(answer.headers["location"]).text
    assert "Seeding 1: 20 tasks of 640 examples each" in shown
    assert count_of(own, "pending") == waiting + 20
    assert "Undo seeding 1?" in shown
    with own.database.write() as connection:  # somebody takes one
        number = connection.execute(select(func.max(tasks.c.id))).scalar_one()
        values = dict(connection.execute(select(leases).where(leases.c.state == "open")).mappings().first())
        values |= {"id": None, "task_id": number, "fence": "f" * 32, "worker": "lab-xeon"}
        connection.execute(tasks.update().where(tasks.c.id == number).values(state="leased"))
        connection.execute(insert(leases).values(**values))
    answer = site.post("/admin/tasks/seedings/1/withdraw")
    shown = site.get(answer.headers["location"]).text
    assert (
        "19 tasks of seeding 1 were withdrawn, 12,160 examples went back; 1 had already been taken." in shown
    )
    assert count_of(own, "pending") == waiting
    assert "nothing waits" in shown
    assert site.post("/admin/tasks/seedings/7/withdraw").status_code == 404
    rows = site.get("/admin/tasks/seed.json").json()
    assert [(r["tasks"], r["waiting"], r["taken"], r["withdrawn"], r["made_by"]) for r in rows] == [
        (20, 0, 1, 19, "ada")
    ]
    told = [(row.action, row.actor) for row in read_audit(own, limit=2)]
    assert told == [("task.unseed", "ada"), ("task.seed", "ada")]


def test_a_queue_that_moved_shows_the_new_preview(own: Coordinator, visit) -> None:
    """Catches a form that seeds other positions than it showed."""
    site: TestClient = visit(own)
    form = form_of(site.get("/admin/tasks/seed", params=ASK).text)
    site.post("/admin/tasks/seed", data=form)
    answer = site.post("/admin/tasks/seed", data=form)
    assert answer.status_code == 303
    shown = site.get(answer.headers["location"]).text
    assert "The queue has moved since the preview, so nothing was seeded." in shown
    assert form_of(shown)["mark"] not in ("", form["mark"])
    assert {k: v for k, v in form_of(shown).items() if k != "mark"} == ASK
    unmarked = site.post("/admin/tasks/seed", data=ASK)
    assert "moved=1" in unmarked.headers["location"], "a page always shows what it does"
    with own.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(seedings)).scalar_one() == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"tasks": "no", "examples": "640"}, "tasks from 1 to 10,000"),
        ({"tasks": "-4", "examples": "640"}, "tasks from 1 to 10,000"),
        ({"tasks": "9" * 30, "examples": "640"}, "tasks from 1 to 10,000"),
        ({"tasks": "4", "examples": "100"}, "take 64 or 128"),
        ({"tasks": "10000", "examples": "128000"}, "room for"),
        ({"tasks": "4", "examples": "<b>"}, "examples for each task"),
    ],
)
def test_what_cannot_be_is_said_in_place(own: Coordinator, visit, asked: dict[str, str], says: str) -> None:
    """Catches an error page, a button on what cannot be, and a form that does it all the same."""
    site: TestClient = visit(own)
    page = site.get("/admin/tasks/seed", params=asked)
    assert page.status_code == 200
    assert says in page.text
    assert "Nothing has changed yet" not in page.text
    assert "<b>" not in page.text
    answer = site.post("/admin/tasks/seed", data={**asked, "mark": ""})
    assert says in site.get(answer.headers["location"]).text
    assert seedings_view(own).rows == []


def test_without_a_run_the_page_says_so(make_coordinator: Callable[..., Coordinator], visit) -> None:
    site: TestClient = visit(make_coordinator())
    assert "No run yet" in site.get("/admin/tasks/seed", params=ASK).text
    assert stuck_tasks(make_coordinator()).rows == []


@pytest.mark.parametrize("path", ["tasks/seed", "tasks/seedings/1/withdraw", "tasks/kick", "tasks/1/kick"])
def test_another_sites_form_does_nothing(own: Coordinator, visit, path: str) -> None:
    site: TestClient = visit(own)
    del site.headers["x-csrf-token"]
    assert site.post(f"/admin/{path}", data=ASK).status_code == 403
    assert read_audit(own, limit=5, action="task") == []


def test_stuck_tasks_are_counted_and_shown_apart(own: Coordinator, visit) -> None:
    site: TestClient = visit(own)
    view = task_browser(own, state="stuck")
    assert (view.stuck, [row.worker for row in view.rows]) == (1, ["kitchen-laptop"])
    assert "has not got further for 2" in view.rows[0].stuck
    page = site.get("/admin/tasks").text
    assert "1 task is stuck:" in page
    assert "1 stuck</span>" in page
    assert site.get("/admin/tasks.json", params={"state": "stuck"}).json()[0]["stuck"] == view.rows[0].stuck
    details = site.get(f"/admin/tasks/{view.rows[0].id}").text
    assert f"Kick task {view.rows[0].id}?" in details
    fine = task_browser(own, worker="attic-nuc", state="leased").rows[0]
    assert "Kick task" not in site.get(f"/admin/tasks/{fine.id}").text


def test_one_is_kicked(own: Coordinator, visit) -> None:
    site: TestClient = visit(own)
    number = task_browser(own, state="stuck").rows[0].id
    answer = site.post(f"/admin/tasks/{number}/kick")
    shown = site.get(answer.headers["location"]).text
    assert f"Task {number} of kitchen-laptop was kicked and waits for the next worker." in shown
    view = task_page(own, number)
    assert (view.task.state, view.task.stuck, view.attempts[-1].state) == ("pending", "", "revoked")
    assert "stuck" not in site.get("/admin/tasks").text.split('id="rows"')[1]
    assert site.post(f"/admin/tasks/{number}/kick").status_code == 409
    assert site.post("/admin/tasks/kick").status_code == 409


def test_all_are_kicked(own: Coordinator, visit) -> None:
    site: TestClient = visit(own)
    own.clock.time += 120
    assert "10 tasks are stuck:" in site.get("/admin/tasks").text
    answer = site.post("/admin/tasks/kick")
    shown = site.get(answer.headers["location"]).text
    assert "10 stuck tasks were kicked and wait for the next workers:" in shown
    assert count_of(own, "leased") == 0
    with own.database.read() as connection:
        query = select(func.max(workers.c.failures)).where(workers.c.rest_until == 0)
        assert connection.execute(query).scalar_one() == 0, "nobody is blamed"
