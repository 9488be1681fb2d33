"""What a refresh in a real browser brings, and what it leaves alone, where no other test looks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import pytest
from served import Process, prepare, serving
from steps import refresh, zoom

from bithaul.coordinator.commands.steer import pause_run, pin_version, resume_run

pytestmark = pytest.mark.browser

VERSIONS = 9000  # more than an overview shows; with a zoom into it more than the page usually holds


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Process]:
    with serving(partial(prepare, versions=VERSIONS)) as running:
        yield running


def test_the_title_follows_what_happens(open_tab, coordinator) -> None:
    """Catches: "running" above a run that somebody has paused, an hour after it happened."""
    tab = open_tab()
    for path in ("/admin", "/admin/runs"):
        page = tab.go(path)
        assert "running" in page.locator(".head").inner_text()
        pause_run(coordinator.c, actor="bob")
        refresh(page)
        assert "paused" in page.locator(".head").inner_text(), path
        resume_run(coordinator.c, actor="bob")
        refresh(page)
        assert "running" in page.locator(".head").inner_text(), path
    page = tab.go(f"/admin/runs/{VERSIONS}")
    pin_version(coordinator.c, VERSIONS, on=True, actor="bob")
    refresh(page)
    assert "pinned" in page.locator(".head").inner_text()
    tab.assert_quiet()


def test_an_axis_chosen_before_the_curve_is_there(open_tab) -> None:
    """Catches: "Loading the curve" for ever over a curve that is there, on a slow line."""
    tab = open_tab()
    page, held = tab.page, []
    page.route("**/admin/curve.json*", lambda route: held.append(route))
    page.goto(tab.url + "/admin")
    page.get_by_role("button", name="log", exact=True).click()
    page.emulate_media(color_scheme="dark")
    for route in held:
        route.continue_()
    page.wait_for_selector("[data-chart=loss][data-newest]")
    assert page.locator("[data-waiting]").count() == 0
    assert page.evaluate("window.bithaul.plots.loss.scales.y.distr") == 3
    tab.assert_quiet()


def test_what_a_zoom_has_fetched_stays(open_tab) -> None:
    """Catches: every version of the range for five seconds, and then the thinned curve again."""
    tab = open_tab()
    page = tab.go("/admin")
    page.locator("[data-interval]").select_option("0")
    page.wait_for_selector("[data-chart=loss][data-newest]")
    inside = """() => { const { min, max } = window.bithaul.plots.loss.scales.x;
      return window.bithaul.plots.loss.data[0].filter((x) => x >= min && x <= max).length; }"""
    overview = page.evaluate("window.bithaul.plots.loss.data[0].length")
    assert overview < VERSIONS / 2
    for start, end in ((0.02, 0.98), (0.02, 0.98), (0.4, 0.6)):
        with page.expect_response(re.compile("curve.json[?]first=")):
            zoom(page, start, end)
        page.wait_for_timeout(300)
    assert page.evaluate("window.bithaul.plots.loss.data[0].length") > 4000
    seen = page.evaluate(inside)
    refresh(page)
    page.wait_for_timeout(500)
    assert page.evaluate(inside) == seen
    page.get_by_role("button", name="Show all").click()
    refresh(page)
    page.wait_for_timeout(500)
    assert page.evaluate("window.bithaul.plots.loss.data[0].length") < 1.05 * overview
    tab.assert_quiet()
