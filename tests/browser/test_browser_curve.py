"""The loss curve without a mouse: by keyboard, by the two buttons, with a finger."""

from __future__ import annotations

import pytest
from sqlalchemy import update
from steps import SCALE, refresh

from bithaul.coordinator.database.tables import leases

pytestmark = pytest.mark.browser


def range_of(page) -> list[float]:
    page.wait_for_timeout(150)
    return list(page.evaluate(SCALE))


def test_the_curve_is_zoomed_by_keyboard(open_tab) -> None:
    """Catches: a curve that only a mouse can look into, and a key that goes past the run's end."""
    tab = open_tab()
    page = tab.go("/admin")
    page.wait_for_selector("[data-chart=loss][data-newest]")
    page.locator("[data-interval]").select_option("0")
    chart = page.get_by_role("group", name="Training and held-out loss. Plus and minus zoom")
    chart.focus()
    first, last = range_of(page)
    page.keyboard.press("+")
    near = range_of(page)
    assert near[1] - near[0] == pytest.approx((last - first) / 2)
    assert page.evaluate("window.bithaul.plots.speed.scales.x.max") == pytest.approx(near[1])
    assert page.locator("#loss-range").inner_text().startswith("from version ")
    page.keyboard.press("ArrowRight")
    along = range_of(page)
    assert along[0] > near[0]
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert range_of(page)[1] == pytest.approx(last)
    page.keyboard.press("Home")
    assert range_of(page)[0] == pytest.approx(first)
    refresh(page)
    assert range_of(page)[0] == pytest.approx(first)
    assert chart.evaluate("(node) => node === document.activeElement")
    for _ in range(40):
        page.keyboard.press("+")
    near = range_of(page)
    assert 0 < near[1] - near[0] < (last - first) / 500
    for key in ("Escape", "0"):
        page.keyboard.press("+")
        page.keyboard.press(key)
        assert range_of(page) == [first, last]
        assert not page.get_by_role("button", name="Show all").is_visible()
    page.keyboard.press("+")
    page.keyboard.press("-")
    assert range_of(page) == [first, last], "all of it is no zoom"
    assert not page.get_by_role("button", name="Show all").is_visible()
    assert page.locator("#loss-range").inner_text() == ""
    tab.assert_quiet()


def test_the_curve_is_zoomed_with_a_finger(open_tab) -> None:
    """Catches: a phone that shows the curve and cannot look into it."""
    tab = open_tab(width=390, height=844, has_touch=True, is_mobile=True)
    page = tab.go("/admin")
    page.wait_for_selector("[data-chart=loss][data-newest]")
    page.locator("[data-interval]").select_option("0")
    page.get_by_role("button", name="Zoom in").tap()
    page.get_by_role("button", name="Zoom in").tap()
    before = range_of(page)
    page.locator("[data-chart=loss] .u-over").evaluate(
        """(over) => {
          const { x, y, width } = over.getBoundingClientRect();
          const at = (name, share) => over.dispatchEvent(new PointerEvent(name, {
            pointerType: "touch", clientX: x + width * share, clientY: y + 60, bubbles: true }));
          at("pointerdown", 0.7); at("pointermove", 0.5); at("pointermove", 0.45); at("pointerup", 0.45);
          at("pointermove", 0.1);
        }"""
    )
    after = range_of(page)
    assert after[1] - after[0] == pytest.approx(before[1] - before[0])
    assert after[0] - before[0] == pytest.approx(0.25 * (before[1] - before[0]), rel=0.05)
    page.get_by_role("button", name="Zoom out").tap()
    page.get_by_role("button", name="Zoom out").tap()
    assert not page.get_by_role("button", name="Show all").is_visible()
    tab.assert_quiet()


def test_many_stalled_machines_push_no_curve_away(open_tab, coordinator) -> None:
    """Catches: seven notes over the whole width, and a list that closes at the next refresh."""
    now = coordinator.c.clock.now()
    with coordinator.c.database.write() as connection:
        connection.execute(update(leases).where(leases.c.state == "open").values(moved_at=now - 900))
    tab = open_tab(width=1280, height=800)
    page = tab.go("/admin")
    page.wait_for_selector("[data-chart=loss][data-newest]")
    page.locator("[data-interval]").select_option("0")
    assert page.locator("#notices .note").count() == 1
    box = page.locator("[data-chart=loss]").bounding_box()
    assert box["y"] + 0.7 * box["height"] < 800
    assert not page.locator("#stalled li").first.is_visible()
    page.locator("#stalled summary").click()
    assert page.locator("#stalled li").first.is_visible()
    refresh(page)
    assert page.locator("#stalled li").first.is_visible()
    tab.assert_quiet()
