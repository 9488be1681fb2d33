"""What the admin site costs: 1,000 workers, a million log rows, over 100,000 metric points, signed in.

A real coordinator process on a pretended run (tests/browser/pretend.py, large.py) in a real SQLite file,
asked over HTTP. Milliseconds are of `--repeats` requests, the median and the 95th percentile; `fragment` and
`delta` are the dashboard refreshing. `first_fragment_ms` is the very first request of a process, asked as
soon as it listens, and `settled_first_ms` the first one, two seconds later; each the median of `--starts`
starts. The CPU shares are of one core over `--watch` seconds, with nobody and with five viewers who refresh
the dashboard every five seconds. `long_` is of another run, with `--long` versions: the first whole curve
that a process is asked for, two seconds after its start, and later ones. What a browser sees is measured
with the system's Chromium where Playwright is installed: medians of `--visits` visits with an empty cache.
The last line is JSON. Example:

    python benchmarks/site_speed.py --workers 1000 --versions 400
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import psutil
from sqlalchemy import func, select

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.database.tables import logs, telemetry
from bithaul.coordinator.settings import Settings, load_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from large import crowd
from pretend import MACHINES, enter, pretend_run
from served import Process, chromium_path

FRAGMENT = {"HX-Request": "true", "X-Auto-Refresh": "1"}
VIEWERS, REFRESH = 5, 5.0
PAGES = ("workers", "tasks", "runs", "logs", "keys", "install")
FIND = "/admin/logs?level=error"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def milliseconds(client: httpx2.Client, path: str, repeats: int, headers: Mapping[str, str]) -> list[float]:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        client.get(path, headers=headers).raise_for_status()
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def told(name: str, taken: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    worst = sorted(taken)[min(len(taken) - 1, int(0.95 * len(taken)))]
    return {f"{name}_ms": round(statistics.median(taken), 1), f"{name}_p95_ms": round(worst, 1)}


def cpu_share(
    process: psutil.Process, client: httpx2.Client, viewers: int, seconds: float, after: int
) -> float:
    """Of one core, while that many viewers refresh in turn."""

    def spent() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before, began = spent(), time.monotonic()
    turns = int(seconds / REFRESH) * max(1, viewers)
    for turn in range(turns):
        time.sleep(max(0.0, began + turn * seconds / turns - time.monotonic()))
        if viewers:
            client.get("/admin", headers=FRAGMENT).raise_for_status()
            client.get(f"/admin/curve.json?after={after}", headers=FRAGMENT).raise_for_status()
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    return (spent() - before) / (time.monotonic() - began)


def in_browser(url: str, cookie: tuple[str, str], visits: int) -> dict[str, Any]:
    """Bytes and seconds of the first page, each time in a browser context that knows nothing yet."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    path = chromium_path()
    if path is None:
        return {}
    sizes, loaded, drawn = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(visits):
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            context.add_cookies([{"name": cookie[0], "value": cookie[1], "url": url}])
            page = context.new_page()
            began = time.perf_counter()
            page.goto(url + "/admin", wait_until="commit")
            page.wait_for_selector("[data-chart=loss][data-newest]")
            drawn.append(time.perf_counter() - began)
            page.wait_for_load_state("networkidle")
            sizes.append(
                page.evaluate(
                    "['resource', 'navigation'].flatMap((kind) => performance.getEntriesByType(kind))"
                    ".reduce((sum, entry) => sum + entry.transferSize, 0)"
                )
            )
            loaded.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"))
            context.close()
        browser.close()
    return {
        "first_page_bytes": max(sizes),
        "first_page_loaded_s": round(statistics.median(loaded), 3),
        "first_page_curve_drawn_s": round(statistics.median(drawn), 3),
    }


def prepared(folder: Path, versions: int, *, workers: int, rows: int, points: int) -> tuple[Settings, str]:
    """A pretended run in `folder`, its settings, and the cookie of somebody signed in."""
    (folder / "bithaul.toml").write_text("worker_gone_seconds = 86400\ndisk_reserve_bytes = 0\n")
    settings = load_settings(folder, port=free_port())
    with closing(open_coordinator(settings)) as c:
        pretend_run(c, count=versions, weights=True)
        if workers > len(MACHINES):
            crowd(c, machines=workers - len(MACHINES), entries=rows, points=points)
        return settings, enter(c).cookie


def client_of(settings: Settings, cookie: str) -> httpx2.Client:
    url = f"http://127.0.0.1:{settings.port}"
    name = Cookies(settings).session
    return httpx2.Client(base_url=url, headers={"cookie": f"{name}={cookie}"}, timeout=60)


def long_history(versions: int, starts: int) -> dict[str, Any]:
    """The curve of a run that has gone on for long, with twelve workers."""
    with tempfile.TemporaryDirectory(prefix="bithaul-long-") as scratch:
        settings, cookie = prepared(Path(scratch), versions, workers=0, rows=0, points=0)
        served = Process(Path(scratch), url=f"http://127.0.0.1:{settings.port}")
        first: list[float] = []
        with client_of(settings, cookie) as client:
            for _ in range(starts):
                served.start()
                time.sleep(2.0)
                first += milliseconds(client, "/admin/curve.json", 1, FRAGMENT)
                served.stop()
            served.start()
            try:
                time.sleep(2.0)
                size = len(client.get("/admin/curve.json").content)
                delta = f"/admin/curve.json?after={versions}"
                return {
                    "long_versions": versions,
                    "long_curve_first_ms": round(statistics.median(first), 1),
                    **told("long_curve", milliseconds(client, "/admin/curve.json", 20, FRAGMENT)),
                    **told("long_delta", milliseconds(client, delta, 20, FRAGMENT)),
                    **told("long_fragment", milliseconds(client, "/admin", 20, FRAGMENT)),
                    "long_curve_bytes": size,
                }
            finally:
                served.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--versions", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--visits", type=int, default=7)
    parser.add_argument("--watch", type=float, default=60.0)
    parser.add_argument("--long", type=int, default=6000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bithaul-site-") as scratch:
        folder = Path(scratch)
        settings, cookie = prepared(
            folder, asked.versions, workers=asked.workers, rows=asked.rows, points=asked.points
        )
        with closing(open_coordinator(settings)) as c, c.database.read() as connection:
            sizes = {
                name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for name, table in (("log_rows", logs), ("metric_points", telemetry))
            }
        url = f"http://127.0.0.1:{settings.port}"
        served = Process(folder, url=url)
        client = client_of(settings, cookie)
        delta = f"/admin/curve.json?after={asked.versions}"
        result: dict[str, Any] = {
            "workers": asked.workers,
            "versions": asked.versions,
            **sizes,
        }
        with client:
            first, settled = [], []
            for _ in range(asked.starts):
                for pause, into in ((0.0, first), (2.0, settled)):
                    served.start()
                    time.sleep(pause)
                    into += milliseconds(client, "/admin", 1, FRAGMENT)
                    served.stop()
            served.start()
            try:
                time.sleep(2.0)
                result |= {
                    "first_fragment_ms": round(statistics.median(first), 1),
                    "settled_first_ms": round(statistics.median(settled), 1),
                    **told("fragment", milliseconds(client, "/admin", asked.repeats, FRAGMENT)),
                    **told("delta", milliseconds(client, delta, asked.repeats, FRAGMENT)),
                    **told("curve", milliseconds(client, "/admin/curve.json", 20, {})),
                    **told("errors_of_log", milliseconds(client, FIND, 20, {})),
                }
                for page in PAGES:
                    result |= told(page, milliseconds(client, f"/admin/{page}", 20, {}))
                process = psutil.Process(served.process.pid)
                result["cpu_nobody"] = round(cpu_share(process, client, 0, asked.watch, asked.versions), 4)
                share = cpu_share(process, client, VIEWERS, asked.watch, asked.versions)
                result[f"cpu_{VIEWERS}_viewers"] = round(share, 4)
                result |= in_browser(url, (Cookies(settings).session, cookie), asked.visits)
            finally:
                served.stop()
    if asked.long:
        result |= long_history(asked.long, asked.starts)
    result["load_average"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    print(json.dumps(result))


if __name__ == "__main__":
    main()
