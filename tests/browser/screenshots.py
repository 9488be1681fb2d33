"""Pictures of the admin site for the docs: python tests/browser/screenshots.py docs/images

The run in them is made up (see pretend.py); a real coordinator process serves it to the system's Chromium.
With `--review` every page is taken whole, light and dark, 360 and 1440 px wide, for somebody to look at.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update

sys.path.insert(0, str(Path(__file__).parent))
from served import NAME, Process, chromium_path, prepare
from steps import sign_in

from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.database.tables import leases
from bithaul.coordinator.identity.people import find_by_name
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.tables import sessions
from bithaul.coordinator.settings import load_settings

VERSIONS = 400
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{} Safari/537.36"
ELSEWHERE = (  # address, browser, hours since its last request
    ("192.168.1.31", "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0", 3.2),
    (
        "192.168.1.44",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/19.1 Mobile/15E148 Safari/604.1",
        9.5,
    ),
)


@dataclass(frozen=True)
class Shot:
    """`path` may have `{task}`: one that several machines have tried. `whole`: as tall as the page is."""

    name: str
    path: str
    width: int = 1280
    height: int = 900
    scheme: str = "light"
    whole: bool = False
    signed_in: bool = True
    then: Callable[[Any], None] | None = None  # what a person does on the page first


NAMES = chain(("porch-pc",), (f"porch-pc-{number}" for number in count(2)))


def make_a_key(page: Any) -> None:
    page.get_by_label("Name of the machine").fill(next(NAMES))
    page.get_by_role("button", name="Make its key").click()
    page.wait_for_selector("#secret")


SHOTS = (
    Shot("site-signin", "/admin", height=560, signed_in=False),
    Shot("site-dashboard", "/admin", 1440, whole=True),
    Shot("site-workers", "/admin/workers", 1440, whole=True),
    Shot("site-worker", "/admin/workers/desk-ryzen", height=1240),
    Shot("site-tasks", "/admin/tasks?state=leased", whole=True),
    Shot("site-task", "/admin/tasks/{task}", whole=True),
    Shot("site-seed", "/admin/tasks/seed?tasks=40&examples=30272", height=820),
    Shot("site-runs", "/admin/runs", height=960),
    Shot("site-version", f"/admin/runs/{VERSIONS}", scheme="dark", whole=True),
    Shot("site-logs", "/admin/logs", scheme="dark"),
    Shot("site-keys", "/admin/keys", whole=True),
    Shot("site-install", "/admin/install", height=480),
    Shot("site-secret", "/admin/install", whole=True, then=make_a_key),
    Shot("site-account", "/account", height=560),
    Shot("site-password", "/account/password", height=640),
    Shot("site-phone", "/admin", 390, 844, "dark"),
)
REVIEW = [
    replace(shot, name=f"{shot.name}-{width}-{scheme}", width=width, scheme=scheme, whole=True)
    for shot in SHOTS
    if shot.name != "site-phone"
    for width in (360, 1440)
    for scheme in ("light", "dark")
]


def visit_from_elsewhere(c: Coordinator) -> None:
    """The same person has the site open on other machines too."""
    store = Sessions(c)
    with c.database.write() as connection:
        found = find_by_name(connection, NAME)
        assert found is not None
        for address, agent, hours in ELSEWHERE:
            store.start(connection, found[0], replaces=None, address=address, agent=agent)
            seen = {"last_seen_at": c.clock.now() - 3600 * hours}
            connection.execute(update(sessions).where(sessions.c.address == address).values(seen))


def tried_task(c: Coordinator) -> int:
    """The newest task that more than one machine has had."""
    query = select(leases.c.task_id).group_by(leases.c.task_id).having(func.count() > 2)
    with c.database.read() as connection:
        return int(connection.execute(query.order_by(leases.c.task_id.desc()).limit(1)).scalar_one())


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", type=Path, nargs="?", default=Path("docs/images"))
    parser.add_argument("--only", action="append", help="names of pictures (repeatable)")
    parser.add_argument("--review", action="store_true")
    asked = parser.parse_args()
    wanted = [s for s in (REVIEW if asked.review else SHOTS) if not asked.only or s.name in asked.only]
    asked.target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bithaul-shots-") as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        prepare(folder, versions=VERSIONS)
        with closing(open_coordinator(load_settings(folder))) as c:
            visit_from_elsewhere(c)
            task = tried_task(c)
        running = Process(folder)
        running.start()
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        agent = AGENT.format(browser.version)
        try:
            page = browser.new_page(user_agent=agent)
            sign_in(page, running.url)
            entered = page.context.storage_state()
            page.close()
            for shot in wanted:
                context = browser.new_context(
                    viewport={"width": shot.width, "height": shot.height},
                    color_scheme=shot.scheme,
                    storage_state=entered if shot.signed_in else None,
                    user_agent=agent,
                )
                page = context.new_page()
                page.goto(running.url + shot.path.format(task=task))
                if shot.then is not None:
                    shot.then(page)
                page.wait_for_load_state("networkidle")
                page.wait_for_timeout(600)
                page.screenshot(path=asked.target / f"{shot.name}.png", full_page=shot.whole)
                context.close()
                print(asked.target / f"{shot.name}.png")
        finally:
            browser.close()
            running.stop()


if __name__ == "__main__":
    main()
