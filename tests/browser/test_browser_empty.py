"""A coordinator that has no run yet: pages say what to do, and fill themselves when it is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pretend import pretend_run
from served import Process, serving, set_up, welcome

pytestmark = pytest.mark.browser

WORDS = {
    "/admin": ("No run yet", "No workers yet"),
    "/admin/workers": ("No workers yet", "Add the first machine"),
    "/admin/tasks": ("No tasks yet",),
    "/admin/tasks/seed": ("No run yet",),
    "/admin/runs": ("No run yet",),
    "/admin/logs": ("No entry matches", "their first words come when they start"),
    "/admin/keys": ("No worker has a key yet",),
}


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Process]:
    with serving(set_up, welcome) as running:
        yield running


@pytest.mark.parametrize("width", [360, 1920])
def test_empty_pages_say_what_to_do(open_tab, width: int) -> None:
    """Catches: a blank table, an error, or a page wider than the screen where nothing is there yet."""
    tab = open_tab(width=width)
    for path, words in WORDS.items():
        page = tab.go(path)
        page.wait_for_load_state("networkidle")
        shown = page.locator("main").inner_text()
        assert all(word in shown for word in words), path
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    tab.assert_quiet()


def test_the_dashboard_fills_itself_when_the_run_is_there(open_tab, coordinator) -> None:
    tab = open_tab()
    page = tab.go("/admin")
    page.locator("[data-interval]").select_option("2")
    assert "No run yet" in page.locator("main").inner_text()
    pretend_run(coordinator.c, count=30, weights=True)
    page.wait_for_selector("[data-chart=loss][data-newest]")
    assert "No run yet" not in page.locator("main").inner_text()
    assert page.locator("[data-chart=loss] canvas").is_visible()
    tab.assert_quiet()
