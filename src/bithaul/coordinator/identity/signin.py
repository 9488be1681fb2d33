"""Proving a password, to sign in or to change it: throttled, audited, and never told what was wrong.

These calls hash and take tens of milliseconds: the doors run them in `PasswordThreads`.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from sqlalchemy import update

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity import passwords, people, secretfiles
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import secrets_folder
from bithaul.coordinator.identity.emergency import passwords_open_until
from bithaul.coordinator.identity.foreign import Recognised
from bithaul.coordinator.identity.sessions import Session, Sessions
from bithaul.coordinator.identity.tables import people as people_rows
from bithaul.coordinator.identity.throttle import Throttle, TooManyAttempts
from bithaul.errors import BithaulError, Forbidden, Unauthorized


class WrongPassword(Unauthorized):
    code = "wrong_password"

    def __init__(self) -> None:
        super().__init__("The name or the password is not right.")


class PasswordsOff(Forbidden):
    code = "passwords_off"

    def __init__(self, issuer: str) -> None:
        super().__init__(f"Sign in through {issuer}; passwords are off.")


@dataclass(frozen=True)
class Visitor:
    """Where an attempt comes from."""

    address: str
    agent: str


def sign_in(
    c: Coordinator,
    sessions: Sessions,
    throttle: Throttle,
    *,
    name: str,
    password: str,
    replaces: str | None,
    visitor: Visitor,
) -> str:
    """The cookie of the session. Raises `WrongPassword`, `TooManyAttempts`, `PasswordsOff`.

    Beside a foreign provider passwords count for a while only, and so does what they open.
    """
    _refuse_guessers(throttle, name, visitor)
    with c.database.read() as connection:
        found = people.find_by_name(connection, name)
    person, stored = (None, None) if found is None else found
    good = passwords.is_password(stored, password)
    if not good or person is None or person.disabled or stored is None:
        raise _failed(c, throttle, "sign-in.refused", name, visitor)
    rehashed = passwords.hash_password(password) if passwords.needs_rehash(stored) else None
    now = c.clock.now()
    with c.database.write() as connection:
        again = people.find_by_id(connection, person.id)
        if again is None or again[0].disabled or again[0].password_changed_at != person.password_changed_at:
            raise WrongPassword  # changed while we hashed
        ends_at = passwords_open_until(c) if c.settings.oidc_issuer else None
        if c.settings.oidc_issuer and ends_at is None:  # closed while we hashed
            raise PasswordsOff(c.settings.oidc_issuer)
        if rehashed is not None:
            connection.execute(
                update(people_rows).where(people_rows.c.id == person.id).values(password_hash=rehashed)
            )
        cookie = sessions.start(
            connection,
            person,
            replaces=replaces,
            address=visitor.address,
            agent=visitor.agent,
            ends_at=ends_at,
        )
        record(connection, now, actor=name, action="sign-in", subject=name, detail=visitor.address)
    return cookie


def sign_in_foreign(
    c: Coordinator, sessions: Sessions, who: Recognised, *, replaces: str | None, visitor: Visitor
) -> str:
    """The cookie of a session that the admin site accepts. Raises `Forbidden` for a disabled person."""
    hashed = passwords.hash_password(passwords.generate_password())
    now = c.clock.now()
    with c.database.write() as connection:
        person = people.known_by_provider(connection, who.name, hashed, now=now)
        if person.disabled:
            raise Forbidden("This person was disabled here.", code="disabled")
        cookie = sessions.start(
            connection,
            person,
            replaces=replaces,
            address=visitor.address,
            agent=visitor.agent,
            proven_at=min(who.auth_time, now),
        )
        detail = f"{c.settings.oidc_issuer} {who.subject} {visitor.address}"
        record(connection, now, actor=who.name, action="sign-in.foreign", subject=who.name, detail=detail)
    return cookie


def refused_foreign(c: Coordinator, reason: str, visitor: Visitor) -> None:
    """An audit row for a sign-in that the provider's answer did not carry."""
    with c.database.write() as connection:
        record(
            connection,
            c.clock.now(),
            actor="oidc",
            action="sign-in.refused",
            subject=c.settings.oidc_issuer,
            detail=f"{reason} {visitor.address}",
        )


def change_password(
    c: Coordinator,
    sessions: Sessions,
    throttle: Throttle,
    *,
    session: Session,
    current: str,
    new: str,
    visitor: Visitor,
) -> str:
    """The session's new cookie; the person's other sessions end. Raises as `sign_in`, or `InvalidInput`."""
    _refuse_guessers(throttle, session.name, visitor)
    with c.database.read() as connection:
        found = people.find_by_id(connection, session.person_id)
    if found is None or not passwords.is_password(found[1], current):
        raise _failed(c, throttle, "person.change-password-refused", session.name, visitor)
    person = found[0]
    passwords.check_new(new, name=person.name)
    if hmac.compare_digest(new.encode(), current.encode()):
        raise Forbidden("The new password must differ from the current one.", code="same_password")
    hashed = passwords.hash_password(new)
    with c.database.write() as connection:
        people.set_password(connection, person, hashed, now=c.clock.now(), keep_sid=session.sid)
        cookie = sessions.renew(connection, session.sid)
    note = secrets_folder(c) / secretfiles.FIRST_PASSWORD
    note.unlink(missing_ok=True)
    return cookie


def _refuse_guessers(throttle: Throttle, name: str, visitor: Visitor) -> None:
    wait = throttle.blocked(name, visitor.address)
    if wait is not None:
        raise TooManyAttempts(wait)


def _failed(c: Coordinator, throttle: Throttle, action: str, name: str, visitor: Visitor) -> BithaulError:
    wait = throttle.failed(name, visitor.address)
    if wait is not None:
        return TooManyAttempts(wait)
    with c.database.write() as connection:
        record(connection, c.clock.now(), actor=name, action=action, subject=name, detail=visitor.address)
    return WrongPassword()
