"""What strangers send, on every page that shows it; and what a browser's history gives back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
from served import Process, chromium_path
from sqlalchemy import select, update
from steps import sign_in

from bithaul.coordinator.database.tables import leases, reports, tasks, workers
from bithaul.coordinator.identity.clients import list_clients
from bithaul.coordinator.identity.tables import sessions

pytestmark = pytest.mark.browser

EVIL = (
    "<script>window.owned=1</script>\"><img src=x onerror='window.owned=1'>{{7*7}} javascript:window.owned=1 "
    '" hx-get="/account" hx-trigger="load" x="'
)


def poison(coordinator: Process) -> int:
    """Such words in every column that a worker, a browser or a reason can fill; a task that shows them."""
    with coordinator.c.database.write() as connection:
        row = connection.execute(select(workers).where(workers.c.id == "attic-nuc")).mappings().one()
        able = {**row["capabilities"], "device": EVIL, "software": EVIL}
        connection.execute(
            update(workers).where(workers.c.id == "attic-nuc").values(capabilities=able, trust_reason=EVIL)
        )
        task = connection.execute(
            select(reports.c.task_id).where(reports.c.worker == "attic-nuc").order_by(reports.c.seq.desc())
        ).first()[0]
        connection.execute(update(tasks).values(reason=EVIL).where(tasks.c.id == task))
        connection.execute(update(leases).values(reason=EVIL).where(leases.c.task_id == task))
        refused = {"reason": EVIL, "code": EVIL[:60], "verdict": "rejected"}
        connection.execute(update(reports).values(refused).where(reports.c.task_id == task))
        connection.execute(update(sessions).values(agent=EVIL[:200]))
    return int(task)


def test_hostile_machines_tasks_and_browsers_are_text(open_tab: Any, coordinator: Process) -> None:
    """Catches: a template that trusts a worker's device, a task's reason or a browser's name."""
    task = poison(coordinator)
    tab = open_tab(user_agent=EVIL[:190])
    shown = 0
    for path in (
        "/admin",
        "/admin/workers",
        "/admin/workers/attic-nuc",
        "/admin/tasks",
        f"/admin/tasks/{task}",
        "/admin/tasks?q=" + "%22%3E%3Cimg%20src%3Dx%20onerror%3Dwindow.owned%3D1%3E",
        "/admin/workers?q=" + "%22%20hx-get%3D%22%2Faccount",
        "/account",
    ):
        page = tab.go(path)
        page.wait_for_load_state("networkidle")
        if page.locator("#refresher").count():  # the same words come by a swap too
            page.evaluate("window.bithaul.refresh()")
            page.wait_for_load_state("networkidle")
        assert page.evaluate("window.owned") is None, path
        assert page.locator("img[src=x], [hx-trigger='load'], [onerror]").count() == 0, path
        assert page.locator("a[href^='javascript:'], form[action^='javascript:']").count() == 0, path
        text = page.locator("body").inner_text()
        assert "{{7*7}}" in text or "49 javascript" not in text, path
        shown += "<script>window.owned=1</script>" in text
        tab.assert_quiet()
    assert shown >= 4  # machine list, its page, the task, the account


@pytest.fixture
def with_history(chromium: Any, coordinator: Process) -> Iterator[Any]:
    """A signed-in page of a Chromium that keeps whole pages in memory for going back, as people's do."""
    sandbox = [] if os.name != "posix" or os.geteuid() else ["--no-sandbox"]
    browser = chromium.browser_type.launch(
        executable_path=chromium_path(),
        args=sandbox,
        ignore_default_args=["--disable-back-forward-cache"],
    )
    page = browser.new_page()
    sign_in(page, coordinator.url)
    yield page
    browser.close()


def step(page: Any, how: str) -> str:
    """Back or forward in the history; the page that is there then, or the browser's own error page."""
    from playwright.sync_api import Error

    with contextlib.suppress(Error):  # a page that was made by a form and is not kept: ERR_CACHE_MISS
        getattr(page, how)(wait_until="load", timeout=5_000)
    for _ in range(40):
        with contextlib.suppress(Error):  # it is still on its way
            page.wait_for_timeout(250)
            return str(page.content())
    raise AssertionError(f"{how} never came to an end")


def test_going_back_shows_no_secret_again(with_history: Any, coordinator: Process) -> None:
    """SEC-37. Catches: a secret that the next person at this screen gets by the button Back."""
    page = with_history
    page.goto(coordinator.url + "/admin/install")
    page.get_by_label("Name of the machine").fill("history-phone")
    page.get_by_role("button", name="Make its key").click()
    secret = page.locator("#secret").inner_text()
    assert secret.startswith("bhw_")
    made = len(list_clients(coordinator.c))
    page.goto(coordinator.url + "/admin/keys")
    assert "history-phone" in page.content()
    for how in ("go_back", "go_forward", "go_back", "go_back", "go_forward"):
        assert secret not in step(page, how), how
    assert len(list_clients(coordinator.c)) == made  # going back sent no form again
    page.goto(coordinator.url + "/admin/keys")
    assert secret not in page.content()
    kept = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, history.state, location.href])"
    )
    assert secret not in kept


def test_going_back_after_signing_out_shows_nothing(with_history: Any, coordinator: Process) -> None:
    """SEC-37. Catches: pages of somebody who has signed out, kept by the browser."""
    page = with_history
    page.goto(coordinator.url + "/admin/workers")
    assert "kitchen-laptop" in page.content()
    page.context.clear_cookies()
    page.goto(coordinator.url + "/signin")
    for how in ("go_back", "go_back"):
        assert "kitchen-laptop" not in step(page, how), how
