"""The log of a large run in a real browser: a million entries, put into SQLite by one statement."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from large import NEEDLE, crowd
from served import Process, prepare, serving
from sqlalchemy import func, select

from bithaul.coordinator.database.tables import logs

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Process]:
    """Fifty machines do here; `test_browser_large.py` has a thousand."""
    with serving(partial(prepare, versions=20), partial(crowd, machines=50, points=5_000)) as running:
        yield running


def test_an_error_is_found_in_a_million_log_rows(open_tab, coordinator) -> None:
    """Catches: a search that gives up, one that freezes the page, a filter that hides what it should show."""
    with coordinator.c.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(logs)).scalar_one() > 1_000_000
    tab = open_tab()
    page = tab.go("/admin/logs")
    page.get_by_role("link", name="Errors only").click()
    page.wait_for_url("**/admin/logs?level=error")
    assert set(page.locator("#lines .badge").all_inner_texts()) == {"error"}
    page.locator("[name=q]").fill(NEEDLE)
    began = time.monotonic()
    page.locator("[name=q]").press("Enter")
    page.wait_for_selector(f"#lines tr:has-text('{NEEDLE}')", timeout=60_000)
    assert time.monotonic() - began < 30, "ten stretches of 100,000 entries"
    assert page.locator("#lines tr").count() == 1
    assert "level=error" in page.url
    tab.assert_quiet()


def test_a_search_stops_when_it_is_told_to(open_tab) -> None:
    """Catches: a page that goes away from under who has begun to type another word.

    Also while the next stretch is being searched: its answer is held back here.
    """
    page = open_tab().page
    held: list[Any] = []
    page.route(re.compile("before="), lambda route: held.append(route))
    page.goto(open_tab().url + "/admin/logs?q=nowhere+to+be+found")
    for _ in range(100):
        page.wait_for_timeout(100)
        if held:
            break
    assert len(held) == 1, "it went on by itself"
    here = page.url
    page.keyboard.press("/")
    page.wait_for_selector("[data-go-on]:not([hidden])")
    from playwright.sync_api import Error

    with contextlib.suppress(Error):  # nobody waits for it any more
        held[0].fulfill(status=200, body="another page")
    page.wait_for_timeout(1000)
    assert page.url == here
    assert len(held) == 1
    assert page.evaluate("document.activeElement.name") == "q"


def test_the_hundredth_page_opens_like_the_first(open_tab) -> None:
    page = open_tab().go("/admin/logs?before=20000")
    assert page.locator("#lines tr").count() == 200
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**/admin/logs?before=*")
    assert page.locator("#lines tr").count() == 200
