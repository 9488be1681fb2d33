"""POST /logs: store a worker's log entries, so many a minute and so many bytes, each and together.

A worker that logs without end fills its own minute, not the operator's disk; what was left out becomes one
entry. Letters are stored as they came: who shows them escapes them.
"""

from __future__ import annotations

import json
from typing import Final

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet
from bithaul.exchange.messages import LogBatch, LogEntry

ROWS_PER_MINUTE: Final = 3_000
BYTES_PER_MINUTE: Final = 2**20
MAX_FIELDS_BYTES: Final = 8_192


def ingest_logs(c: Coordinator, worker: str, batch: LogBatch) -> int:
    """How many entries were stored. What the worker had to drop, or we, becomes an entry of its own."""
    now = c.clock.now()
    entries = [_bounded(entry) for entry in batch.entries]
    with c.database.write(durable=False) as connection:
        count, size = fleet.count_logs(connection, worker, since=now - 60.0)
        left = _fitting(entries, rows=ROWS_PER_MINUTE - count, size=BYTES_PER_MINUTE - size)
        dropped = batch.dropped + len(entries[left:])
        entries = entries[:left]
        if dropped and left:
            entries.append(
                LogEntry(time=now, level="warning", event="log entries dropped", fields={"count": dropped})
            )
        fleet.insert_logs(connection, worker, entries, now=now)
    return len(entries)


def _fitting(entries: list[LogEntry], *, rows: int, size: int) -> int:
    """How many of the first entries there is room for."""
    for number, entry in enumerate(entries[: max(0, rows)]):
        size -= len(entry.event) + len(json.dumps(entry.fields))
        if size < 0:
            return number
    return min(len(entries), max(0, rows))


def _bounded(entry: LogEntry) -> LogEntry:
    size = len(json.dumps(entry.fields))
    if size <= MAX_FIELDS_BYTES:
        return entry
    return entry.model_copy(update={"fields": {"fields_dropped_bytes": size}})
