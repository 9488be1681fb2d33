"""The admin site in a real browser: every page under its policy, and a refresh that takes nothing away."""

from __future__ import annotations

import json
import re
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from served import NAME, PASSWORD
from sqlalchemy import select
from steps import PAGES, SCALE, refresh, write_logs, zoom

from bithaul.coordinator.database import fleet
from bithaul.coordinator.database.runs import get_run
from bithaul.coordinator.database.tables import workers
from bithaul.coordinator.database.versions import insert_version, newest_version
from bithaul.coordinator.identity.clients import create_client, list_clients
from bithaul.exchange.weights import weights_pieces

pytestmark = pytest.mark.browser


def add_version(coordinator) -> int:
    """The next version, as a merge would announce it: first its weights, then the row."""
    with coordinator.c.database.read() as connection:
        newest = newest_version(connection, 1)
        zeros = np.zeros(get_run(connection).layout.size, np.float32)
    number = newest.version + 1
    blob = coordinator.c.blobs.put(weights_pieces(number, zeros), name=f"test-{number}")
    with coordinator.c.database.write() as connection:
        row = replace(
            newest,
            version=number,
            sha256=blob.sha256,
            size=blob.size,
            theta_sha256=blob.sha256,
            created_at=coordinator.c.clock.now(),
            tokens_total=newest.tokens_total + newest.tokens,
        )
        insert_version(connection, row)
    return row.version


def point(page, version: int, *, of: int) -> None:
    """At a version of the loss curve; the first and the last, which is `of`, are at its edges."""
    over = page.locator("[data-chart=loss] .u-over").bounding_box()
    page.mouse.move(over["x"] + over["width"] * (version - 1) / (of - 1), over["y"] + 60)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1920])
def test_every_page_is_quiet_and_fits(open_tab, width: int, scheme: str) -> None:
    """Catches: a policy violation, a script error, a missing file, a page wider than the screen."""
    tab = open_tab(width=width, scheme=scheme)
    for path in PAGES:
        page = tab.go(path)
        page.wait_for_load_state("networkidle")
        if page.locator("#refresher").count():
            refresh(page)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} px wide at {width}"
        assert page.locator("h1").count() == 1, path
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark"), path
        tab.assert_quiet()


def test_the_first_page_is_light(open_tab) -> None:
    page = open_tab().go("/admin")
    page.wait_for_load_state("networkidle")
    sizes = page.evaluate(
        "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
        ".map((e) => [e.name, e.transferSize])"
    )
    assert len(sizes) >= 8
    assert all(size > 0 for _, size in sizes), sizes
    assert sum(size for _, size in sizes) < 150_000, sizes


def test_zoom_stays_and_the_curve_grows(open_tab, coordinator) -> None:
    """Catches: mlflow's plots that forget their zoom at each refresh."""
    tab = open_tab()
    page = tab.go("/admin")
    page.wait_for_selector("[data-chart=loss][data-newest]")
    whole = page.evaluate(SCALE)
    zoomed = zoom(page, 0.4, 0.7)
    assert zoomed[0] > whole[0] + 50
    assert zoomed[1] < whole[1] - 50
    canvas = page.locator("[data-chart=loss] canvas").element_handle()
    made = add_version(coordinator)
    refresh(page)
    page.wait_for_selector(f"[data-chart=loss][data-newest='{made}']")
    assert page.evaluate(SCALE) == zoomed
    assert canvas.evaluate("(node) => node.isConnected"), "the chart was not thrown away"
    assert page.locator("#totals dd").nth(6).inner_text() == str(made), "the strip moved on meanwhile"
    page.get_by_role("button", name="Show all").click()
    assert page.evaluate(SCALE)[1] == made
    tab.assert_quiet()


def test_the_smoothed_line_runs_through_the_raw_one(open_tab) -> None:
    """Catches: a mean of the past, which lies above a curve that falls, and one that smooths nothing."""
    page = open_tab().go("/admin")
    page.wait_for_selector("[data-chart=loss][data-newest]")
    data = page.evaluate("window.bithaul.plots.loss.data.map((column) => [...column])")
    known = [(raw, line) for raw, line in zip(data[3], data[4], strict=True) if raw is not None]
    assert len(known) > 250
    for first, last in ((0, 40), (40, 120), (120, 298)):
        off = [line - raw for raw, line in known[first:last]]
        assert abs(np.mean(off)) < 0.02, (first, last, np.mean(off))
    raw, line = (np.array(column[100:]) for column in zip(*known, strict=True))
    assert np.abs(np.diff(line, 2)).mean() < 0.1 * np.abs(np.diff(raw, 2)).mean()
    speed = page.evaluate("window.bithaul.plots.speed.data.map((column) => [...column])")
    raw, line = (np.array(column[1:], dtype=float) for column in speed[1:3])
    assert abs(np.nanmean(line) / np.nanmean(raw) - 1) < 0.02
    assert np.nanstd(np.diff(line)) < 0.1 * np.nanstd(np.diff(raw))


def test_a_speed_says_what_it_is_the_speed_of(open_tab, coordinator) -> None:
    """Catches: two speeds of "now", of one version and of several, that disagree."""
    page = open_tab().go("/admin")
    page.wait_for_selector("[data-chart=loss][data-newest]")
    newest = page.locator("#totals dd").nth(6).inner_text()
    assert page.locator("[data-value=at]").all_inner_texts() == [f"version {newest}"] * 2
    assert "now" not in page.locator(".curves header").all_inner_texts()
    assert "newest few versions" in page.get_by_text("Speed", exact=True).get_attribute("title")
    middle = int(newest) // 2
    point(page, middle, of=int(newest))
    shown = "(wanted) => document.querySelector('[data-value=at]').textContent === wanted"
    page.wait_for_function(shown, arg=f"version {middle}")
    assert page.locator("[data-value=at]").all_inner_texts() == [f"version {middle}"] * 2


@pytest.mark.parametrize("width", [800, 1280])  # a narrower one has fewer points than versions
def test_what_is_pointed_at_stays_under_the_pointer(open_tab, coordinator, width: int) -> None:
    """Catches: words about a point for which the curve makes room, and is no longer under the pointer."""
    page = open_tab(width=width).go("/admin")
    page.wait_for_selector("[data-chart=loss][data-newest]")
    over = page.locator("[data-chart=loss] .u-over")
    over.scroll_into_view_if_needed()
    before = over.bounding_box()
    newest = int(page.locator("[data-chart=loss]").get_attribute("data-newest"))
    for version, words in ((2, "version 2"), (150, "rejected")):
        point(page, version, of=newest)
        page.wait_for_selector(f"[data-thinned]:has-text('{words}')")
        assert over.bounding_box() == before


def test_a_curve_that_does_not_come_says_so_and_comes_later(open_tab) -> None:
    """Catches: an empty frame, which looks like a run without any loss."""
    page = open_tab().page
    page.route("**/admin/curve.json*", lambda route: route.abort())
    page.goto(open_tab().url + "/admin")
    page.wait_for_selector("[data-waiting]:has-text('did not come')")
    page.unroute("**/admin/curve.json*")
    refresh(page)
    page.wait_for_selector("[data-chart=loss][data-newest]")
    assert page.locator("[data-waiting]").count() == 0


def test_axes_change_and_are_kept(open_tab) -> None:
    tab = open_tab()
    page = tab.go("/admin")
    page.wait_for_selector("[data-chart=loss][data-newest]")
    page.get_by_role("button", name="tokens").click()
    page.get_by_role("button", name="log").click()
    assert page.evaluate(SCALE)[1] > 1_000_000
    assert page.evaluate("window.bithaul.plots.loss.scales.y.distr") == 3
    page.reload()
    page.wait_for_selector("[data-chart=loss][data-newest]")
    assert page.evaluate(SCALE)[1] > 1_000_000
    tab.assert_quiet()


def test_refresh_keeps_typing_focus_and_scroll(open_tab) -> None:
    page = open_tab(height=500).go("/admin/workers")
    page.keyboard.press("/")
    page.keyboard.type("attic")
    page.evaluate("scrollTo(0, 120)")
    before = page.locator("#rows tbody tr").first.element_handle()
    refresh(page)
    assert page.evaluate("document.activeElement.name") == "q"
    assert page.locator("[name=q]").input_value() == "attic"
    assert page.evaluate("scrollY") == 120
    assert before.evaluate("(node) => node.isConnected"), "rows are changed, not replaced"


def test_refresh_happens_by_itself_and_can_be_switched_off(open_tab) -> None:
    page = open_tab().go("/admin")
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if r.headers.get("hx-request") else None)
    page.locator("[data-interval]").select_option("2")
    page.wait_for_timeout(5000)
    assert 1 <= len(asked) <= 4
    page.locator("[data-interval]").select_option("0")
    page.wait_for_timeout(500)
    asked.clear()
    page.wait_for_timeout(3500)
    assert asked == []
    assert re.fullmatch(r"updated \d+ s ago", page.locator("[data-updated]").inner_text())
    page.reload()
    assert page.locator("[data-interval]").input_value() == "0", "the choice is kept"


def test_a_hidden_page_rests_and_wakes(open_tab) -> None:
    page = open_tab().go("/admin")
    page.locator("[data-interval]").select_option("2")
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if r.headers.get("hx-request") else None)
    hide = "(on) => { Object.defineProperty(document, 'hidden', { value: on, configurable: true }); "
    hide += "document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    page.wait_for_timeout(500)
    asked.clear()
    page.wait_for_timeout(4000)
    assert asked == []
    page.evaluate(hide, False)
    page.wait_for_timeout(1000)
    assert len(asked) == 1


def test_the_banner_tells_when_the_coordinator_is_away_and_back(open_tab, coordinator) -> None:
    """A real stop: the process is killed, the page keeps what it had, and goes on when it is back."""
    tab = open_tab()
    page = tab.go("/admin")
    page.locator("[data-interval]").select_option("2")
    coordinator.stop()
    page.wait_for_selector("#away:not([hidden])")
    assert "does not answer" in page.locator("#away").inner_text()
    assert page.locator("#totals dd").nth(0).inner_text() == "14", "the last numbers stay"
    coordinator.start()
    page.wait_for_selector("#away", state="hidden", timeout=30_000)
    assert page.evaluate("window.__violations") == []


def test_a_coordinator_that_hangs_is_told_too(open_tab, coordinator) -> None:
    """Catches: a page that waits for ever and says "updated a minute ago" meanwhile."""
    page = open_tab().go("/admin")
    page.locator("[data-interval]").select_option("2")
    coordinator.process.send_signal(signal.SIGSTOP)
    try:
        page.wait_for_selector("#away:not([hidden])", timeout=30_000)
        assert "does not answer" in page.locator("#away").inner_text()
    finally:
        coordinator.process.send_signal(signal.SIGCONT)
    page.wait_for_selector("#away", state="hidden", timeout=30_000)


def ask(page) -> None:
    page.get_by_label("A request, as a driver would say it").fill("take me to dallas")
    page.get_by_role("button", name="Ask").click()


def test_the_try_box_tells_when_the_coordinator_is_away(open_tab, coordinator) -> None:
    """Catches: a button that does nothing that one can see. No refresh helps here: it is off."""
    page = open_tab().go("/admin/runs")
    page.locator("[data-interval]").select_option("0")
    coordinator.stop()
    ask(page)
    page.wait_for_selector("#away:not([hidden])")
    assert page.locator("#away").inner_text() == "The coordinator does not answer. Try again in a moment."
    coordinator.start()
    refresh(page)
    page.wait_for_selector("#away", state="hidden")


def test_an_error_is_not_called_silence(open_tab) -> None:
    """Catches: "does not answer" about a coordinator that has answered."""
    page = open_tab().go("/admin/runs")
    page.locator("[data-interval]").select_option("0")
    page.route("**/admin/runs", lambda route: route.fulfill(status=500, body="broken"))
    refresh(page)
    page.wait_for_selector("#away:not([hidden])")
    text = page.locator("#away").inner_text()
    assert text.startswith("The coordinator answered with an error (500). What you see is from")
    page.unroute("**/admin/runs")
    refresh(page)
    page.wait_for_selector("#away", state="hidden")
    page.route("**/admin/runs/try", lambda route: route.fulfill(status=500, body="broken"))
    ask(page)
    page.wait_for_selector("#away:not([hidden])")
    assert page.locator("#away").inner_text().startswith("The coordinator answered with an error (500).")
    assert page.locator("#answer").inner_text() == ""


def test_a_sentence_of_somebody_signed_out_brings_no_second_page(open_tab) -> None:
    """Catches: a sign-in form swapped into the try box."""
    page = open_tab().go("/admin/runs")
    page.locator("[data-interval]").select_option("0")
    page.context.clear_cookies()
    ask(page)
    page.wait_for_selector("#away:not([hidden])")
    assert page.locator("input[type=password]").count() == 0


def test_a_double_click_acts_once(open_tab, coordinator) -> None:
    """Catches: a second click on Delete, which finds nothing there and shows a bare error."""
    create_client(coordinator.c, "clicked-twice", scope="bithaul.worker")
    sent: list[str] = []
    page = open_tab().go("/admin/keys?q=clicked-twice")
    page.on("request", lambda r: sent.append(r.url) if r.method == "POST" else None)
    page.get_by_role("button", name="Delete").first.click()
    page.locator("#delete-clicked-twice").get_by_role("button", name="Delete").dblclick()
    page.wait_for_selector(".note.good")
    assert len(sent) == 1


def test_a_form_on_its_way_is_not_sent_again(open_tab, coordinator) -> None:
    """Catches: a button that stays alive while the answer takes its time."""
    create_client(coordinator.c, "sent-once", scope="bithaul.worker")
    page, sent = open_tab().go("/admin/keys?q=sent-once"), []

    def answer(route) -> None:
        sent.append(route.request.url)
        route.fulfill(status=204)  # a browser stays on the page for it, as it does until an answer comes

    page.route("**/delete", answer)
    page.get_by_role("button", name="Delete").first.click()
    for _ in range(3):
        page.evaluate("document.querySelector('#delete-sent-once form button:not([type=button])').click()")
        page.wait_for_timeout(200)
    assert len(sent) == 1


def test_a_question_survives_refreshes_with_its_answers(open_tab, coordinator) -> None:
    """Catches: the chosen hour of grace falls back to none, or the question closes, while one reads it."""
    create_client(coordinator.c, "asked-about", scope="bithaul.worker")
    page = open_tab().go("/admin/keys?q=asked-about")
    page.get_by_role("button", name="Rotate").first.click()
    box = page.locator("#rotate-asked-about")
    box.locator("[name=grace]").select_option("3600")
    box.get_by_role("button", name="Cancel").focus()  # the choice has no focus, which alone would keep it
    for _ in range(2):
        refresh(page)
        assert box.is_visible()
        assert box.locator("[name=grace]").input_value() == "3600"


def test_on_a_phone_nothing_lies_on_a_badge_of_the_crew(open_tab) -> None:
    """Catches: when a machine was last seen, written over the word that says it is gone."""
    page = open_tab(width=360).go("/admin")
    row = page.locator(".crew li", has_text="lab-xeon")
    seen, badge = row.locator("time").bounding_box(), row.locator(".badge").bounding_box()
    assert seen["x"] + seen["width"] <= badge["x"], (seen, badge)


def test_signed_out_is_said_and_the_page_stays(open_tab, coordinator) -> None:
    """Catches: a sign-in form swapped into the middle of a dashboard."""
    page = open_tab().go("/admin")
    page.context.clear_cookies()
    refresh(page)
    page.wait_for_selector("#away a")
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if r.headers.get("hx-request") else None)
    page.locator("[data-interval]").select_option("2")
    page.wait_for_timeout(3000)
    assert asked == [], "nobody is there to ask"
    assert "signed out" in page.locator("#away").inner_text()
    assert page.locator("#totals").count() == 1
    assert page.locator("input[type=password]").count() == 0


def test_keys_go_everywhere(open_tab) -> None:
    page = open_tab().go("/admin")
    for letter, path in (("w", "workers"), ("t", "tasks"), ("r", "runs"), ("l", "logs"), ("k", "keys")):
        page.keyboard.press("g")
        page.keyboard.press(letter)
        page.wait_for_url(f"**/admin/{path}")
    page.keyboard.press("g")
    page.keyboard.press("d")
    page.wait_for_url("**/admin")
    page.keyboard.press("/")
    page.wait_for_url("**/admin/logs#search")
    page.wait_for_selector("[name=q]:focus")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()


def test_an_action_asks_once_and_shows_its_result(open_tab, coordinator) -> None:
    tab = open_tab()
    page = tab.go("/admin/workers/desk-ryzen")
    page.get_by_role("button", name="Drain").first.click()
    dialog = page.locator("#drain")
    assert "gets no more work until you resume" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    assert not dialog.is_visible()
    page.get_by_role("button", name="Drain").first.click()
    refresh(page)
    assert dialog.is_visible(), "a refresh does not close what the operator reads"
    dialog.get_by_role("button", name="Drain").click()
    page.wait_for_selector(".note.good")
    assert "desk-ryzen finishes what it has" in page.locator(".note.good").inner_text()
    with coordinator.c.database.read() as connection:
        query = select(workers.c.drained).where(workers.c.id == "desk-ryzen")
        assert connection.execute(query).scalar_one()
    tab.assert_quiet()


def test_filters_live_in_the_address(open_tab) -> None:
    page = open_tab().go("/admin/logs")
    page.get_by_role("link", name="Errors only").click()
    page.wait_for_url("**/admin/logs?level=error")
    assert set(page.locator("#lines .badge").all_inner_texts()) == {"error"}
    page.locator("[name=worker]").select_option("attic-nuc")
    page.wait_for_url(re.compile(r"worker=attic-nuc"))
    assert "level=error" in page.url


def test_a_machine_is_added_and_its_page_turns_green(open_tab, coordinator) -> None:
    tab = open_tab()
    page = tab.go("/admin/install")
    page.get_by_label("Name of the machine").fill("new-phone")
    page.get_by_role("button", name="Make its key").click()
    secret = page.locator("#secret").inner_text()
    assert secret.startswith("bhw_")
    assert f"BITHAUL_CLIENT_SECRET={secret}" in page.locator("#line-bash").inner_text()
    assert "turns green" in page.locator("#arrived").inner_text()
    with coordinator.c.database.write() as connection:
        fleet.insert_worker(connection, "new-phone", now=time.time())
    page.wait_for_selector("#arrived .note.good")
    assert "new-phone has arrived" in page.locator("#arrived").inner_text()
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, location.href])")
    assert secret not in json.loads(json.dumps(kept)), "a secret is kept nowhere in the browser"
    tab.assert_quiet()


def test_a_secrets_page_loaded_again_changes_nothing(open_tab, coordinator) -> None:
    """Catches: F5, which rotates again and kills the secret that the machine was just given; a bare error."""
    create_client(coordinator.c, "pressed-f5", scope="bithaul.worker")
    page = open_tab().go("/admin/keys?q=pressed-f5")
    page.get_by_role("button", name="Rotate").first.click()
    page.locator("#rotate-pressed-f5").get_by_role("button", name="Rotate").click()
    page.wait_for_selector("#secret")
    hint = next(k.hint for k in list_clients(coordinator.c) if k.id == "pressed-f5")
    assert page.locator("#secret").inner_text().startswith(hint)
    page.reload()
    page.wait_for_url("**/admin/keys?q=pressed-f5&shown=pressed-f5")
    assert "it is not shown twice" in page.locator(".note.warn").inner_text()
    assert next(k.hint for k in list_clients(coordinator.c) if k.id == "pressed-f5") == hint

    page.goto(coordinator.url + "/admin/install")
    page.get_by_label("Name of the machine").fill("loaded-again")
    page.get_by_role("button", name="Make its key").click()
    page.wait_for_selector("#secret")
    page.reload()
    page.wait_for_selector("#why")
    assert "it is not shown twice" in page.locator("#why").inner_text()
    assert page.get_by_label("Name of the machine").input_value() == "loaded-again"
    page.get_by_role("link", name="rotate that key").click()
    page.wait_for_url("**/admin/keys?q=loaded-again")


def test_a_secrets_page_whose_session_has_ended_leads_to_a_page(open_tab, coordinator) -> None:
    """Catches: "Sign in again" that leads to an address which only takes forms, a bare 405."""
    create_client(coordinator.c, "left-alone", scope="bithaul.worker")
    page = open_tab().go("/admin/keys?q=left-alone")
    page.get_by_role("button", name="Rotate").first.click()
    page.locator("#rotate-left-alone").get_by_role("button", name="Rotate").click()
    page.wait_for_selector("#secret")
    page.context.clear_cookies()
    refresh(page)
    assert page.locator("#away a").get_attribute("href") == "/admin/keys?q=left-alone"
    page.locator("#away a").click()
    page.get_by_label("Name").fill(NAME)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/admin/keys?q=left-alone")
    assert page.locator("#key-left-alone").count() == 1


def test_words_of_strangers_run_nothing(open_tab, coordinator) -> None:
    """Catches: a log entry, there from the start or brought by the live tail, that becomes a tag."""
    evil = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>"><b>{{7*7}}'
    write_logs(coordinator, evil)
    tab = open_tab()
    for path in ("/admin/workers/attic-nuc", "/admin/logs"):
        page = tab.go(path)
        page.wait_for_load_state("networkidle")
        assert evil in page.locator("body").inner_text(), path
        assert page.evaluate("window.owned") is None
    write_logs(coordinator, "newer " + evil)
    page.wait_for_selector("#lines tr.new")
    assert "newer " + evil in page.locator("#lines tr").first.inner_text()
    assert page.evaluate("window.owned") is None
    tab.assert_quiet()


def test_times_are_the_viewers_with_utc_in_the_title(open_tab) -> None:
    page = open_tab(timezone_id="Asia/Tokyo").go("/admin/runs/300")
    made = page.locator("time[data-shown=moment]").first
    utc = made.get_attribute("title")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", utc)
    assert int(made.inner_text()[11:13]) == (int(utc[11:13]) + 9) % 24


def test_pages_read_without_script(open_tab) -> None:
    """Catches: numbers that only a script can show."""
    page = open_tab(java_script_enabled=False).go("/admin")
    assert "Newest versions" in page.locator("main").inner_text()
    assert page.locator("#below tbody tr").count() == 10
    page = open_tab(java_script_enabled=False).go("/admin/logs?level=error")
    assert page.locator("#lines tr").count() > 0
