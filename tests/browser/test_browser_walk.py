"""SEC-33: every page and every action in a real browser, with no word of complaint.

A robot opens pages and presses what it has not pressed yet, through the dialogs a person sees, until nothing
new turns up. Then every address of the site that changes something must have been reached from a page.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from served import PASSWORD
from sqlalchemy import delete, select, update
from steps import sign_in

from bithaul.coordinator.app import create_app
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.database.tables import leases, telemetry
from bithaul.coordinator.settings import load_settings

pytestmark = pytest.mark.browser

START = ["/admin", "/admin/workers", "/admin/tasks", "/admin/tasks/seed?tasks=20&examples=640"]
START += ["/admin/runs", "/admin/logs", "/admin/keys", "/admin/install", "/account", "/account/password"]
WORKERS = ["/admin/workers/kitchen-laptop", "/admin/workers/attic-nuc"]
ENDS_THE_SESSION = {"/account/sign-out", "/account/sign-out-everywhere", "/connect/endsession", "/signin"}
NO_PAGE_SENDS = {"/connect/authorize"}  # for applications that send their users by form
NEW = "another long enough phrase"
TRIED_ELSEWHERE = {"/admin/runs/try"}  # needs a model that real workers trained: test_browser_try.py
WHAT = "/admin/keys/{key}/{what}"
WORDS = {"name": "walked-machine", "current": PASSWORD, "new": NEW, "again": NEW}

FORMS = """() => [...document.forms].map((form, index) => ({
  index,
  path: new URL(form.getAttribute("hx-post") || form.getAttribute("action"), location.href).pathname,
  posts: form.method === "post" || form.hasAttribute("hx-post"),
  dialog: form.closest("[popover]")?.id || null,
}))"""


def site_routes(app: Any) -> list[tuple[str, re.Pattern[str]]]:
    """(address, its pattern) of every page that takes a form; nothing that is in the API's document."""
    found, todo = [], list(app._app.routes)
    while todo:
        route = todo.pop()
        inner = getattr(route, "original_router", None)
        todo += getattr(route, "routes", None) or getattr(inner, "routes", [])
        if "POST" in (getattr(route, "methods", None) or ()) and not route.include_in_schema:
            pattern = re.sub(r"\\\{\w+\\\}|\{\w+\}", "[^/]+", route.path)
            found.append((route.path, re.compile(pattern)))
    return sorted(found, key=lambda pair: pair[0].count("{"))


class Robot:
    """Presses each form's button once per address, and remembers which it pressed."""

    def __init__(self, tab: Any, routes: list[tuple[str, re.Pattern[str]]]) -> None:
        self.tab = tab
        self.routes = routes
        self.pressed: set[str] = set()

    def name_of(self, path: str) -> str:
        """The route of an address; of one with a last part that says what to do, with that part."""
        name = next(name for name, pattern in self.routes if pattern.fullmatch(path))
        return name.replace("{what}", path.rpartition("/")[2])

    def settle(self) -> None:
        self.tab.page.wait_for_load_state("networkidle")
        self.tab.assert_quiet()

    def press(self, path: str, form: dict[str, Any]) -> None:
        page = self.tab.page
        if form["dialog"]:
            page.locator(f"[popovertarget='{form['dialog']}']:not([popovertargetaction])").first.click()
        box = page.locator("form").nth(form["index"])
        for field in box.locator("input:not([type=hidden]), textarea").all():
            known = WORDS.get(field.get_attribute("name") or "")
            if known is not None and field.get_attribute("type") not in ("checkbox", "radio"):
                field.fill(known)
        with page.expect_response(lambda r: r.request.method == "POST") as answered:
            box.locator("button:not([popovertargetaction])").first.click()
        assert answered.value.status in (200, 303), (path, form, answered.value.status)
        self.settle()

    def walk(self, pages: list[str], *, last: bool = False) -> None:
        """Press whatever is new on these pages, until a round brings nothing new.

        `last`: one button that ends the session instead.
        """
        fresh = True
        while fresh:
            fresh = False
            for path in pages:
                while self.press_one(path, last=last):
                    fresh = True
                    if last:
                        return

    def press_one(self, path: str, *, last: bool) -> bool:
        """Open a page and press the first button on it that is new; False when there is none."""
        self.tab.go(path)
        self.settle()
        for form in self.tab.page.evaluate(FORMS):
            name = self.name_of(form["path"]) if form["posts"] else ""
            if not name or name in self.pressed | TRIED_ELSEWHERE or (name in ENDS_THE_SESSION) != last:
                continue
            self.pressed.add(name)
            self.press(path, form)
            return True
        return False


def open_tasks(coordinator: Any) -> list[int]:
    with coordinator.c.database.read() as connection:
        query = select(leases.c.task_id).where(leases.c.state == "open")
        return list(connection.execute(query).scalars())


def get_stuck(coordinator: Any) -> None:
    """Somebody has had a task for a day and never said a word about it."""
    task = open_tasks(coordinator)[0]
    with coordinator.c.database.write() as connection:
        connection.execute(delete(telemetry).where(telemetry.c.task_id == task))
        mine = (leases.c.task_id == task) & (leases.c.state == "open")
        connection.execute(update(leases).where(mine).values(granted_at=time.time() - 86_400))


@pytest.mark.timeout(600)
def test_every_page_and_every_action_is_quiet(open_tab, coordinator, chromium, tmp_path) -> None:
    """Catches: a button whose page breaks the policy, logs an error, or that no page offers any more."""
    other = open_coordinator(load_settings(tmp_path))  # making the app writes its own address down
    routes = site_routes(create_app(other))
    other.close()
    robot = Robot(open_tab(), routes)
    tasks = [f"/admin/tasks/{task}" for task in open_tasks(coordinator)]
    assert len(tasks) >= 3, "one to kick, one to take back, one that is stuck"
    robot.walk(tasks)
    get_stuck(coordinator)
    robot.walk([*START, *WORKERS, "/admin/runs/300", "/admin/runs/299"])

    elsewhere = chromium.new_context()  # another session to end; the walk has changed the password
    sign_in(elsewhere.new_page(), coordinator.url, NEW)
    elsewhere.close()
    robot.walk(["/account"])
    for path in ("/account", "/account", "/connect/endsession"):
        robot.walk([path], last=True)
        sign_in(robot.tab.page, coordinator.url, NEW)
        robot.settle()
    robot.pressed.add("/signin")

    every = {name for name, _ in routes} - {WHAT}
    every |= {WHAT.replace("{what}", what) for what in ("disable", "enable", "delete")}
    assert len(every) > 25
    assert robot.pressed == every - NO_PAGE_SENDS - TRIED_ELSEWHERE
