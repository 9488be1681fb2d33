"""Old telemetry, log entries and broken uploads are deleted, and the space goes back to the file system."""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet

DAY = 86_400.0
UPLOADS_KEPT = DAY  # since the last byte


def prune(c: Coordinator) -> str:
    """Deletes what is older than the settings say. Real deletion: freed pages leave the database file."""
    now = c.clock.now()
    with c.database.write() as connection:
        points, entries = fleet.prune_before(
            connection,
            telemetry_before=now - c.settings.telemetry_days * DAY,
            logs_before=now - c.settings.log_days * DAY,
        )
    if points or entries:
        c.database.shrink()
    uploads = c.uploads.sweep(older_than=now - UPLOADS_KEPT)
    return f"{points} telemetry points, {entries} log entries and {uploads} broken uploads deleted"
