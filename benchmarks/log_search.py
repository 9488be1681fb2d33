"""Searching the log of a coordinator: seconds for one page of results in a real SQLite file.

`absent` looks for words that no entry has, `errors` for the level, `worker` for one of fifty. The whole
search follows "search further back" to the end. The last line is JSON. Example:

    python benchmarks/log_search.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import text

from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.database.logbook import LogFilter
from bithaul.coordinator.queries.logbook import log_page
from bithaul.coordinator.settings import load_settings

FILL = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows) "
    "INSERT INTO logs (received_at, time, worker, level, event, fields) SELECT :now - :rows + i, :now, "
    "'w' || (i % 50), CASE WHEN i % 997 = 0 THEN 'error' ELSE 'info' END, 'task ' || i || ' finished', "
    '\'{"task": \' || i || \', "tokens": 48213, "seconds": 31.4}\' FROM n'
)


def first_page(c: Coordinator, wanted: LogFilter, repeats: int) -> float:
    """Shortest of some tries, in seconds."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        log_page(c, wanted)
        taken.append(time.perf_counter() - began)
    return min(taken)


def whole_search(c: Coordinator, wanted: LogFilter) -> tuple[float, int]:
    """Seconds and pages until there is nothing older."""
    began = time.perf_counter()
    pages, before = 0, None
    while pages == 0 or before is not None:
        before = log_page(c, wanted, before=before).older
        pages += 1
    return time.perf_counter() - began, pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bithaul-logs-") as folder:
        c = open_coordinator(load_settings(Path(folder), disk_reserve_bytes=0))
        with closing(c):
            began = time.perf_counter()
            with c.database.write() as connection:
                connection.execute(FILL, {"rows": asked.rows, "now": c.clock.now()})
            insert = time.perf_counter() - began
            absent = LogFilter(text="not anywhere")
            whole, pages = whole_search(c, absent)
            result = {
                "entries": asked.rows,
                "insert_us_per_entry": round(insert / asked.rows * 1e6, 2),
                "absent_s": round(first_page(c, absent, asked.repeats), 3),
                "absent_whole_s": round(whole, 3),
                "absent_whole_pages": pages,
                "errors_s": round(first_page(c, LogFilter(level="error"), asked.repeats), 3),
                "no_level_s": round(first_page(c, LogFilter(level="warning", worker="nobody"), 1), 3),
                "worker_s": round(first_page(c, LogFilter(worker="w7"), asked.repeats), 3),
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
