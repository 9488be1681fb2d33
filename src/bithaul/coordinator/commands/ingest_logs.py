"""POST /logs: store a worker's log entries, bounded."""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import LogBatch


def ingest_logs(c: Coordinator, worker: str, batch: LogBatch) -> int:
    """How many entries were stored."""
    raise NotImplementedError
