"""Finding things in a real browser: without script, by times of the viewer's zone, with the longest names."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import insert, update

from bithaul.coordinator.database import fleet
from bithaul.coordinator.database.tables import leases, logs, reports, runs, tasks, telemetry
from bithaul.coordinator.identity.clients import create_client

pytestmark = pytest.mark.browser

LONG = "w" * 64  # the longest name, with no place to break it


@pytest.mark.parametrize(
    ("path", "field", "choice"),
    [
        ("/admin/workers", "state", "training"),
        ("/admin/tasks", "state", "failed"),
        ("/admin/runs", "kept", "1"),
        ("/admin/logs", "level", "error"),
        ("/admin/keys", "q", "attic"),
    ],
)
def test_filters_work_without_script(open_tab, path: str, field: str, choice: str) -> None:
    """Catches: a form that only a script can send."""
    page = open_tab(java_script_enabled=False).go(path)
    rows = page.locator("main tbody tr").count()
    control = page.locator(f"main form.filters [name={field}]")
    if control.evaluate("(node) => node.tagName") == "SELECT":
        control.select_option(choice)
    else:
        control.fill(choice)
    page.locator("main form.filters button").click()
    page.wait_for_url(f"**{path}?*")
    assert parse_qs(urlsplit(page.url).query)[field] == [choice]
    assert 0 < page.locator("main tbody tr").count() < rows or path == "/admin/logs"
    assert (
        page.locator("[data-interval], [data-tail]").evaluate_all(
            "(nodes) => nodes.filter((node) => node.checkVisibility()).length"
        )
        == 0
    ), "nothing is offered that needs one"


def test_a_filter_is_chosen_with_the_arrow_keys(open_tab) -> None:
    """Catches: a page that comes at the first step and has the focus nowhere, so that no key goes on."""
    tab = open_tab()
    page = tab.go("/admin/tasks")
    page.locator("[name=state]").focus()
    for state in ("pending", "leased", "accepted"):
        page.keyboard.press("ArrowDown")
        page.wait_for_url(f"**state={state}*")
        page.wait_for_function("() => document.activeElement.name === 'state'")
    page.reload()
    assert page.evaluate("document.activeElement.tagName") == "BODY"
    tab.assert_quiet()


def test_with_script_there_is_no_second_button(open_tab) -> None:
    page = open_tab().go("/admin/tasks")
    assert page.locator("main form.filters button").count() == 0


def at(moment: float, zone: str) -> str:
    from zoneinfo import ZoneInfo

    return datetime.fromtimestamp(moment, tz=ZoneInfo(zone)).strftime("%Y-%m-%dT%H:%M")


def test_times_are_typed_in_the_viewers_zone_and_are_utc_in_the_address(open_tab, coordinator) -> None:
    """Catches: nine hours of entries too many, a field that changes at each search, an export of all."""
    now = time.time() // 60 * 60
    rows = [
        {"received_at": t, "time": t, "worker": "timed", "level": "info", "event": f"m{i}", "fields": "{}"}
        for i, t in enumerate(now - 60.0 * back for back in range(60, 0, -1))
    ]
    with coordinator.c.database.write() as connection:
        connection.execute(insert(logs), rows)
    tab = open_tab(timezone_id="Asia/Tokyo")
    page = tab.go("/admin/logs?q=m")
    since, until = rows[10]["received_at"], rows[20]["received_at"]
    page.get_by_label("From").fill(at(since, "Asia/Tokyo"))
    page.get_by_label("Until").fill(at(until, "Asia/Tokyo"))
    page.wait_for_timeout(300)
    assert "from" not in page.url, "half a time is no filter yet"
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**/admin/logs?*from=*")
    asked = parse_qs(urlsplit(page.url).query)
    assert asked["from"] == [at(since, "UTC") + "Z"]
    assert asked["until"] == [at(until, "UTC") + "Z"]
    assert page.get_by_label("From").input_value() == at(since, "Asia/Tokyo")
    events = page.locator("#lines .event").all_inner_texts()
    assert [e for e in events if e.startswith("m") and e[1:].isdecimal()] == [
        f"m{i}" for i in range(19, 9, -1)
    ]
    assert page.locator("[data-tail]").count() == 0
    with page.expect_download() as saved:
        page.get_by_role("link", name="CSV").click()
    assert "m9," not in saved.value.path().read_text(), "the export keeps the times"
    page.locator("[name=level]").select_option("warning")  # sends the form as it stands
    page.wait_for_url("**level=warning*")
    assert parse_qs(urlsplit(page.url).query)["from"] == asked["from"]
    tab.assert_quiet()


def test_times_without_script_are_utc_and_say_so(open_tab) -> None:
    page = open_tab(java_script_enabled=False, timezone_id="Asia/Tokyo").go("/admin/logs")
    assert "From (UTC)" in page.locator("form.filters").inner_text()
    moment = datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M")
    page.locator("[name=from]").fill(moment)
    page.locator("form.filters button").click()
    page.wait_for_url("**from=*")
    assert page.locator("[name=from]").input_value() == moment


@pytest.mark.parametrize("width", [1280, 1366, 1440])
def test_the_tables_fit_a_desk(open_tab, coordinator, width: int) -> None:
    """Catches: a column too many, so that what one can do is out of sight to the right."""
    with coordinator.c.database.write() as connection:  # words that take place: "49 min 30 s ago"
        fleet.update_worker(connection, "loft-mini", last_seen=coordinator.c.clock.now() - 2970, gone=True)
    page = open_tab(width=width).go("/admin")
    paths = ["/admin", "/admin/workers", "/admin/tasks", "/admin/runs", "/admin/logs", "/admin/keys"]
    for path in (*paths, "/admin/workers/hall-thinkpad"):  # of which updates were refused, with long reasons
        page.goto(page.url.partition("/admin")[0] + path)
        over = "[...document.querySelectorAll('.scroll')].map((box) => box.scrollWidth - box.clientWidth)"
        assert max(page.evaluate(over)) <= 0, path
    page.goto(page.url.partition("/admin")[0] + "/admin/workers")
    lines = "(node) => node.getClientRects().length"
    assert {name.evaluate(lines) for name in page.locator("td.name strong").all()} == {1}


@pytest.mark.parametrize("width", [360, 768, 1023, 1024, 1152])
def test_nothing_is_out_of_sight_on_a_small_screen(open_tab, coordinator, width: int) -> None:
    """Catches: Rotate and Drain to the right of what a tablet shows, in a table that has to be pushed."""
    tab = open_tab(width=width)
    paths = ["/admin", "/admin/workers", "/admin/workers/hall-thinkpad", "/admin/tasks", "/admin/tasks/1"]
    paths += ["/admin/tasks/seed", "/admin/runs", "/admin/runs/300", "/admin/logs", "/admin/keys", "/account"]
    over = "[...document.querySelectorAll('.scroll')].map((box) => box.scrollWidth - box.clientWidth)"
    found = {path: max([0, *tab.go(path).evaluate(over)]) for path in paths}
    assert {path: wide for path, wide in found.items() if wide > 0} == {}
    for path, word in (("/admin/workers", "Drain"), ("/admin/keys", "Rotate")):
        for button in tab.go(path).locator("table").get_by_role("button", name=word, exact=True).all():
            box = button.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("width", [360, 768, 1280, 1366, 1920])
def test_a_workers_day_is_drawn_at_every_width(open_tab, width: int) -> None:
    """Catches: a card with a title and nothing below it, on a desk where columns of tables make way."""
    page = open_tab(width=width).go("/admin/workers/desk-ryzen")
    box = page.get_by_role("img", name="Tokens per second in the last 24 hours").bounding_box()
    assert box is not None
    assert box["width"] > 250
    assert box["height"] > 40


@pytest.mark.parametrize(
    "path", ["/admin/workers", "/admin/tasks", "/admin/logs", "/admin/keys", "/admin/tasks/seed"]
)
def test_fields_do_not_lie_on_each_other_on_a_phone(open_tab, path: str) -> None:
    """Catches: a search box under the choice beside it."""
    page = open_tab(width=360).go(path)
    boxes = [f.bounding_box() for f in page.locator("form.filters").locator("input, select, button").all()]
    assert boxes
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            apart_x = a["x"] + a["width"] <= b["x"] + 0.5 or b["x"] + b["width"] <= a["x"] + 0.5
            apart_y = a["y"] + a["height"] <= b["y"] + 0.5 or b["y"] + b["height"] <= a["y"] + 0.5
            assert apart_x or apart_y, (path, a, b)


def long_names(coordinator) -> int:
    """A worker, a run and words without a place to break, wherever a page shows them; its task."""
    create_client(coordinator.c, LONG, scope="bithaul.worker")
    now = coordinator.c.clock.now()
    with coordinator.c.database.write() as connection:
        fleet.insert_worker(connection, LONG, now=now)
        able = {"device": "D" * 120, "threads": 8, "memory_bytes": 2**34, "software": "9." + "9" * 30}
        fleet.update_worker(
            connection, LONG, capabilities=able, ready=True, activity="training", last_seen=now
        )
        connection.execute(update(runs).values(name="r" * 64))
        mine = leases.c.worker == "attic-nuc"
        task = (
            connection.execute(leases.select().where(mine, leases.c.state == "open"))
            .mappings()
            .one()["task_id"]
        )
        connection.execute(update(leases).where(mine).values(worker=LONG))
        refused = {"worker": LONG, "verdict": "rejected", "reason": "y" * 300, "code": "z" * 64}
        connection.execute(update(reports).where(reports.c.worker == "attic-nuc").values(refused))
        connection.execute(update(tasks).where(tasks.c.id == task).values(reason="q" * 150))
        connection.execute(update(telemetry).where(telemetry.c.worker == "attic-nuc").values(worker=LONG))
        line = {"received_at": now, "time": now, "worker": LONG, "level": "error"}
        connection.execute(insert(logs), [line | {"event": "e" * 200, "fields": '{"' + "f" * 200 + '": 1}'}])
    return int(task)


def test_long_names_widen_no_page(open_tab, coordinator) -> None:
    """Catches: a name of 64 letters that pushes a page, a dialog or a table out of the window."""
    task = long_names(coordinator)
    paths = ["/admin", "/admin/workers", f"/admin/workers/{LONG}", "/admin/tasks", f"/admin/tasks/{task}"]
    paths += [
        "/admin/tasks/seed",
        "/admin/runs",
        "/admin/runs/300",
        "/admin/runs/299",
        "/admin/logs",
        "/admin/keys",
    ]
    found = []
    for width in (360, 1280):
        tab = open_tab(width=width)
        for path in paths:
            page = tab.go(path)
            wide = page.evaluate("document.documentElement.scrollWidth")
            out = page.evaluate(
                "(width) => [...document.querySelectorAll('main *')].filter((node) => node.checkVisibility()"
                " && !node.closest('.scroll') && node.getBoundingClientRect().right > width + 1)"
                ".map((node) => `${node.tagName}.${node.className}`).slice(0, 3)",
                width,
            )
            tables = page.evaluate(
                "[...document.querySelectorAll('.scroll')].map((box) => box.scrollWidth - box.clientWidth)"
            )
            if wide > width or out:
                found.append(f"{path} is {wide} px wide at {width}: {out}")
            if path in ("/admin/keys", "/admin/logs") and max(tables) > 1:
                found.append(f"the table of {path} needs {max(tables)} px more at {width}")
        page = tab.go(f"/admin/workers/{LONG}")
        page.get_by_role("button", name="Drain").first.click()
        box = page.locator("[popover]:popover-open")
        if box.evaluate("(node) => node.scrollWidth > node.clientWidth + 1"):
            found.append(f"the dialog is too narrow at {width}")
        tab.assert_quiet()
    assert not found, "\n".join(found)
