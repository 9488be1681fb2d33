"""Old telemetry, log entries, sessions and broken uploads are deleted, and the space is given back."""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet
from bithaul.coordinator.identity.expiry import forget_expired

DAY = 86_400.0
UPLOADS_KEPT = DAY  # since the last byte


def prune(c: Coordinator) -> str:
    """Deletes what is older than the settings say. Real deletion: freed pages leave the database file."""
    now = c.clock.now()
    with c.database.write() as connection:
        expired = forget_expired(c, connection)
        points, entries = fleet.prune_before(
            connection,
            telemetry_before=now - c.settings.telemetry_days * DAY,
            logs_before=now - c.settings.log_days * DAY,
        )
    if points or entries:
        c.database.shrink()
    uploads = c.uploads.sweep(older_than=now - UPLOADS_KEPT)
    return (
        f"{points} telemetry points, {entries} log entries, {expired} expired sessions and "
        f"{uploads} broken uploads deleted"
    )
