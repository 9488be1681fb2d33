"""Sessions that end under somebody's hands, in a real browser: nothing is lost without a word."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from served import NAME, PASSWORD, Process, chromium_path, prepare
from sqlalchemy import func, select
from steps import sign_in

from bithaul.coordinator.database.tables import tasks
from bithaul.coordinator.identity.sessions import Sessions

pytestmark = pytest.mark.browser

SEED = "/admin/tasks/seed?tasks=4&examples=64"
LAN = "192.168.77.7"  # to a browser plain http to another machine is no safe place


def count(coordinator: Process) -> int:
    with coordinator.c.database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(tasks)).scalar_one())


def seed(page: Any) -> None:
    page.get_by_role("button", name=re.compile("Seed 4 tasks")).click()


def told_and_back(page: Any) -> None:
    """The sign-in page says what happened, and leads to where the form was."""
    page.wait_for_selector("input[type=password]")
    assert page.get_by_role("status").inner_text() == "You had been signed out; nothing was changed."
    page.get_by_label("Name").fill(NAME)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**{SEED}")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["it has expired", "signed out in another tab"])
def test_an_action_after_the_session_is_not_lost(chromium, coordinator, elsewhere: bool) -> None:
    """Catches: "Seed 4 tasks", a sign-in page without a word, a dashboard, and no tasks; or a bare 403."""
    context = chromium.new_context()
    context.set_default_timeout(15_000)
    page = context.new_page()
    sign_in(page, coordinator.url)
    page.goto(coordinator.url + SEED)
    before = count(coordinator)
    if elsewhere:
        other = context.new_page()
        other.goto(coordinator.url + "/account")
        other.get_by_role("button", name="Sign out", exact=True).click()
        other.wait_for_url("**/admin/signed-out")
        other.goto(coordinator.url + "/admin")  # now the browser has begun a sign-in
        other.wait_for_selector("input[type=password]")
    else:
        store = Sessions(coordinator.c)
        newest = max(store.live(), key=lambda session: session.created_at)
        store.end(newest.sid, actor="test")
    seed(page)
    told_and_back(page)
    assert count(coordinator) == before
    seed(page)
    page.wait_for_selector(".note.good")
    assert count(coordinator) == before + 4
    context.close()


def test_a_file_asked_for_after_the_session_leads_back_to_its_table(chromium, coordinator) -> None:
    """Catches: a sign-in page saved to the disk as if it were the table, or signing in and then no page."""
    context = chromium.new_context()
    context.set_default_timeout(15_000)
    page = context.new_page()
    sign_in(page, coordinator.url)
    table = "/admin/workers?q=intel"
    page.goto(coordinator.url + table)
    page.locator("[data-interval]").select_option("0")
    with page.expect_download() as saved:
        page.get_by_role("link", name="CSV").click()
    assert saved.value.suggested_filename == "workers.csv"
    context.clear_cookies()
    page.get_by_role("link", name="CSV").click()
    page.wait_for_selector("input[type=password]")
    page.get_by_label("Name").fill(NAME)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**{table}")
    context.close()


def test_forms_work_over_plain_http_on_a_network(chromium) -> None:
    """Catches: a policy under which a browser hides where our own forms come from, and is refused."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://{LAN}:{port}"
    folder = Path(tempfile.mkdtemp(prefix="bithaul-lan-"))
    prepare(folder, versions=3)
    with (folder / "bithaul.toml").open("a") as settings:
        settings.write(f'public_url = "{url}"\nallow_insecure_lan = true\n')
    running = Process(folder, url=f":{port}")
    running.start()
    rule = f"--host-resolver-rules=MAP {LAN} 127.0.0.1"
    browser = chromium.browser_type.launch(executable_path=chromium_path(), args=["--no-sandbox", rule])
    try:
        page = browser.new_page()
        page.set_default_timeout(15_000)
        sign_in(page, url)
        page.goto(url + "/admin/keys?q=attic-nuc")
        page.get_by_role("button", name="Rotate").first.click()
        page.locator("#rotate-attic-nuc").get_by_role("button", name="Rotate").click()
        page.wait_for_selector("#secret")
    finally:
        browser.close()
        running.stop()
        shutil.rmtree(folder)
