"""What tests in a browser do again and again: sign in, refresh, drag over a chart, write log entries."""

from __future__ import annotations

from typing import Any

from served import NAME, PASSWORD, Process
from sqlalchemy import insert

from bithaul.coordinator.database.tables import logs

PAGES = [
    "/admin",
    "/admin/workers",
    "/admin/workers/kitchen-laptop",
    "/admin/tasks",
    "/admin/tasks/1",
    "/admin/tasks/seed?tasks=20&examples=640",
    "/admin/runs",
    "/admin/runs/300",
    "/admin/logs",
    "/admin/keys",
    "/admin/install",
    "/account",
    "/account/password",
]
SCALE = "(() => { const { min, max } = window.bithaul.plots.loss.scales.x; return [min, max]; })()"


def sign_in(page: Any, url: str, password: str = PASSWORD) -> None:
    """From whatever page; ends at the dashboard."""
    page.goto(url + "/admin/signin")
    page.get_by_label("Name").fill(NAME)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/admin")


def refresh(page: Any) -> None:
    """One refresh, whole: the strip is swapped and the curve has its delta."""
    with page.expect_response(lambda r: r.request.headers.get("hx-request") == "true"):
        page.evaluate("window.bithaul.refresh()")
    page.wait_for_timeout(300)


def zoom(page: Any, start: float, end: float) -> list[float]:
    """Drag over the loss curve between two shares of its width; what it shows then."""
    page.wait_for_selector("[data-chart=loss][data-newest]")
    over = page.locator("[data-chart=loss] .u-over").bounding_box()
    page.mouse.move(over["x"] + over["width"] * start, over["y"] + 80)
    page.mouse.down()
    page.mouse.move(over["x"] + over["width"] * end, over["y"] + 90, steps=6)
    page.mouse.up()
    page.wait_for_selector("[data-chart=loss][data-zoomed=yes]")
    return list(page.evaluate(SCALE))


def write_logs(coordinator: Process, *events: str) -> None:
    now = coordinator.c.clock.now()
    entry = {"received_at": now, "time": now, "worker": "attic-nuc", "level": "info", "fields": "{}"}
    with coordinator.c.database.write() as connection:
        connection.execute(insert(logs), [entry | {"event": event} for event in events])
