"""What asks by itself in a real browser, the live tail and the page that waits; and when it must not."""

from __future__ import annotations

import pytest
from steps import write_logs

pytestmark = pytest.mark.browser


def asked_of(page, words: str) -> list[str]:
    """Addresses with these words that the page asks for from now on."""
    found: list[str] = []
    page.on("request", lambda r: found.append(r.url) if words in r.url else None)
    return found


def test_the_tail_moves_only_when_it_may(open_tab, coordinator) -> None:
    tab = open_tab()
    page = tab.go("/admin/logs")
    write_logs(coordinator, "brand_new <b>event</b>")
    page.wait_for_selector("#lines tr.new")
    assert "brand_new <b>event</b>" in page.locator("#lines tr").first.inner_text()
    page.get_by_role("button", name="Pause").click()
    write_logs(coordinator, "while_paused", "while_paused")
    page.wait_for_selector("[data-fresh]:not([hidden])")
    assert page.locator("[data-fresh]").inner_text() == "2 new"
    assert "while_paused" not in page.locator("#lines").inner_text()
    page.locator("[data-fresh]").click()
    assert "while_paused" in page.locator("#lines tr").nth(1).inner_text()
    tab.assert_quiet()


def test_a_flood_is_caught_up_with_and_never_held_whole(open_tab, coordinator) -> None:
    """Catches: a tail a hundred entries a second behind for ever, and a page that holds a whole night."""
    tab = open_tab()
    page = tab.go("/admin/logs")
    page.get_by_role("button", name="Pause").click()
    write_logs(coordinator, *(f"flood {number}" for number in range(6_500)))
    page.wait_for_selector("[data-fresh]:has-text('6,500 new')", timeout=8_000)
    page.locator("[data-fresh]").click()
    assert page.locator("#lines tr").count() == 1000
    assert "flood 6499" in page.locator("#lines tr").first.inner_text()
    assert "flood 5500" in page.locator("#lines tr").last.inner_text()
    tab.assert_quiet()


def test_an_empty_log_is_live_too(open_tab, coordinator) -> None:
    """Catches: somebody who waits for an error before a page that never asks again."""
    tab = open_tab()
    page = tab.go("/admin/logs?q=breakfast")
    assert "No entry matches" in page.locator("main").inner_text()
    write_logs(coordinator, "breakfast is ready")
    page.wait_for_selector("#lines tr.new")
    assert page.locator("#lines tr").count() == 1
    assert page.locator("[data-empty]").count() == 0
    tab.assert_quiet()


def test_the_tail_is_off_when_the_refresh_is(open_tab, coordinator) -> None:
    """Catches: a page that somebody told to be quiet and that asks every two seconds all the same."""
    tab = open_tab()
    page = tab.go("/admin/logs")
    page.locator("[data-interval]").select_option("0")
    assert page.locator("[data-tail]").is_disabled()
    assert page.locator("[data-tail]").inner_text() == "Refresh is off"
    asked = asked_of(page, "/admin/logs/tail")
    write_logs(coordinator, "while_off")
    page.wait_for_timeout(4500)
    assert asked == []
    page.keyboard.press("r")
    page.wait_for_selector("#lines tr.new:has-text('while_off')")
    assert len(asked) == 1, "asked for once is asked once"
    page.locator("[data-interval]").select_option("5")
    assert page.get_by_role("button", name="Pause").is_enabled()
    write_logs(coordinator, "on_again")
    page.wait_for_selector("#lines tr.new:has-text('on_again')")
    tab.assert_quiet()


def test_the_tail_ends_with_the_session(open_tab) -> None:
    """Catches: a page that goes on asking in the name of nobody, and a tail that stops without a word."""
    page = open_tab().go("/admin/logs")
    page.locator("[data-interval]").select_option("60")  # so that it is the tail that notices
    page.context.clear_cookies()
    page.wait_for_selector("#away a")
    assert "signed out" in page.locator("#away").inner_text()
    assert page.locator("[data-tail]").is_disabled()
    asked = asked_of(page, "/admin")
    page.wait_for_timeout(4500)
    assert asked == []
    assert page.locator("input[type=password]").count() == 0


def test_a_page_that_waits_for_a_machine_stops_with_the_session(open_tab) -> None:
    page = open_tab().go("/admin/install")
    page.get_by_label("Name of the machine").fill("waited-for")
    page.get_by_role("button", name="Make its key").click()
    page.wait_for_selector("#secret")
    page.context.clear_cookies()
    page.wait_for_selector("#away a")
    assert "signed out" in page.locator("#away").inner_text()
    asked = asked_of(page, "/state")
    page.wait_for_timeout(4500)
    assert asked == []
    assert page.locator("#secret").count() == 1, "what was shown once is still there"
