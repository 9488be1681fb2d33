"""POST /logs: store a worker's log entries; batches are bounded by the message itself."""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet
from bithaul.exchange.messages import LogBatch, LogEntry


def ingest_logs(c: Coordinator, worker: str, batch: LogBatch) -> int:
    """How many entries were stored. What the worker had to drop becomes an entry of its own."""
    now = c.clock.now()
    entries = list(batch.entries)
    if batch.dropped:
        entries.append(
            LogEntry(time=now, level="warning", event="log entries dropped", fields={"count": batch.dropped})
        )
    with c.database.write() as connection:
        fleet.insert_logs(connection, worker, entries, now=now)
    return len(entries)
