"""What the admin site's pages cost in a run of thousands of versions, asked by somebody signed in.

A pretended run (tests/browser/pretend.py) in a real SQLite file, asked in this process; milliseconds of the
first request of each address and the median of the next. `fragment` and `delta` are the dashboard refreshing.
The last line is JSON. Example:

    python benchmarks/site_speed.py --versions 6000
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from starlette.testclient import TestClient

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.app import create_app
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.settings import load_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from pretend import enter, pretend_run


def milliseconds(client: TestClient, path: str, repeats: int, **headers: str) -> list[float]:
    """Of the first request, and the median of the others."""
    taken = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        client.get(path, headers=headers).raise_for_status()
        taken.append(1000 * (time.perf_counter() - began))
    return [round(taken[0], 1), round(statistics.median(taken[1:]), 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--versions", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bithaul-site-") as folder:
        c = open_coordinator(load_settings(Path(folder), disk_reserve_bytes=0))
        with closing(c):
            pretend_run(c, count=asked.versions)
            client = TestClient(create_app(c), base_url="http://127.0.0.1", follow_redirects=False)
            client.headers["cookie"] = f"{Cookies(c.settings).session}={enter(c).cookie}"
            result: dict[str, object] = {
                "versions": asked.versions,
                "fragment_ms": milliseconds(client, "/admin", asked.repeats, **{"HX-Request": "true"}),
                "delta_ms": milliseconds(client, f"/admin/curve.json?after={asked.versions}", asked.repeats),
                "curve_ms": milliseconds(client, "/admin/curve.json", asked.repeats),
            }
            for page in ("workers", "tasks", "runs", "logs", "keys", "install"):
                result[f"{page}_ms"] = milliseconds(client, f"/admin/{page}", asked.repeats)
    result |= {"machine": platform.machine(), "date": datetime.now(UTC).date().isoformat()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
