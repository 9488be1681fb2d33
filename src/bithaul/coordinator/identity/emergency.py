"""The way back in when the foreign provider is gone for good: passwords count again, for a while.

Only who owns the machine can open it (`bithaul admin allow-passwords`), every opening has an audit row, and
it closes by itself, and with it the sessions that it let in. What says so is a file beside the pepper, so no
copy of the database can hold it open.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import delete, update

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity import secretfiles
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import secrets_folder
from bithaul.coordinator.identity.tables import sessions
from bithaul.errors import InvalidInput

LONGEST_SECONDS: Final = 24 * 3600.0
_FILE: Final = "passwords-open-until"


def open_passwords(c: Coordinator, *, seconds: float, actor: str = "cli") -> float:
    """People may sign in by password until the time that is returned, seconds since the epoch.

    It replaces a former end. Sessions from before end no later than this, and no later than they would have.
    """
    if not 0 < seconds <= LONGEST_SECONDS:
        raise InvalidInput(f"Passwords can be opened for up to {LONGEST_SECONDS / 3600:.0f} hours.")
    now = c.clock.now()
    until = now + seconds
    with c.database.write() as connection:  # the row first: nothing is open that the log does not know
        record(connection, now, actor=actor, action="passwords.open", subject="", detail=f"{seconds:.0f} s")
        connection.execute(update(sessions).where(sessions.c.ends_at > until).values(ends_at=until))
    secretfiles.write_note(secrets_folder(c), _FILE, f"{until}\n")
    return until


def close_passwords(c: Coordinator, *, actor: str = "cli") -> None:
    """The provider alone signs people in again; sessions by password end. Doing it twice is no error."""
    (secrets_folder(c) / _FILE).unlink(missing_ok=True)
    with c.database.write() as connection:
        connection.execute(delete(sessions).where(sessions.c.ends_at.is_not(None)))
        record(connection, c.clock.now(), actor=actor, action="passwords.close", subject="")


def passwords_open_until(c: Coordinator) -> float | None:
    """None: they are closed. A file that says anything odd, such as a time far off, opens nothing."""
    try:
        until = float((secrets_folder(c) / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return until if c.clock.now() < until <= c.clock.now() + LONGEST_SECONDS else None
