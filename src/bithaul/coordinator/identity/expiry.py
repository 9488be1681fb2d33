"""Rows whose time is over leave the database: sessions, sign-ins, codes, denied tokens, failed attempts.

From the copy in a backup all of them go, whatever their time, and the signing keys with them.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.sessions import DAY, SIGN_IN_SECONDS
from bithaul.coordinator.identity.tables import (
    audit,
    codes,
    denied_tokens,
    failed_attempts,
    sessions,
    sign_ins,
    signing_keys,
)
from bithaul.coordinator.identity.throttle import KEEP_SECONDS

REFUSED_DAYS = 7


def forget_expired(c: Coordinator, connection: Connection) -> int:
    """Delete them; how many sessions. Nothing here was still good for anything."""
    now, settings = c.clock.now(), c.settings
    idle = sessions.c.last_seen_at <= now - settings.session_idle_seconds
    over = idle | (sessions.c.created_at <= now - settings.session_days * DAY) | (sessions.c.ends_at <= now)
    ended = connection.execute(delete(sessions).where(over)).rowcount
    connection.execute(delete(sign_ins).where(sign_ins.c.created_at <= now - SIGN_IN_SECONDS))
    connection.execute(delete(codes).where(codes.c.expires_at <= now))
    connection.execute(delete(denied_tokens).where(denied_tokens.c.expires_at <= now))
    connection.execute(delete(failed_attempts).where(failed_attempts.c.time < now - KEEP_SECONDS))
    refused = audit.c.action.in_(["sign-in.refused", "person.change-password-refused"])
    connection.execute(
        delete(audit).where(refused, audit.c.time < now - REFUSED_DAYS * DAY)
    )  # strangers write these
    return ended


def forget_ways_in(connection: Connection) -> None:
    """Delete everything that lets somebody in without proving who it is, in a copy that leaves the machine.

    Without signing keys no token issued before is good for anything: a restored coordinator makes new ones.
    """
    for table in (sessions, sign_ins, codes, denied_tokens, failed_attempts, signing_keys):
        connection.execute(delete(table))
