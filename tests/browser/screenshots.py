"""Pictures of the admin site for the docs: python tests/browser/screenshots.py docs/images

The run in them is made up (see pretend.py); a real coordinator process serves it to the system's Chromium.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
from served import NAME, PASSWORD, Process, chromium_path, prepare

SHOTS = [  # name, path, width, height, scheme
    ("site-dashboard", "/admin", 1440, 1180, "light"),
    ("site-workers", "/admin/workers", 1440, 620, "light"),
    ("site-worker", "/admin/workers/desk-ryzen", 1280, 900, "light"),
    ("site-tasks", "/admin/tasks?state=leased", 1280, 900, "light"),
    ("site-seed", "/admin/tasks/seed?tasks=40&examples=30272", 1280, 760, "light"),
    ("site-runs", "/admin/runs", 1280, 900, "light"),
    ("site-version", "/admin/runs/400", 1280, 980, "dark"),
    ("site-logs", "/admin/logs", 1280, 760, "dark"),
    ("site-keys", "/admin/keys", 1280, 700, "light"),
    ("site-install", "/admin/install", 1280, 760, "light"),
    ("site-phone", "/admin", 390, 844, "dark"),
]


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bithaul-shots-") as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        prepare(folder, versions=400)
        running = Process(folder)
        running.start()
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        try:
            for name, path, width, height, scheme in SHOTS:
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(running.url + path)
                page.get_by_label("Name").fill(NAME)
                page.get_by_label("Password").fill(PASSWORD)
                page.get_by_role("button", name="Sign in").click()
                page.wait_for_url("**/admin**")
                page.wait_for_load_state("networkidle")
                page.wait_for_timeout(600)
                page.screenshot(path=target / f"{name}.png")
                page.close()
                print(target / f"{name}.png")
        finally:
            browser.close()
            running.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
