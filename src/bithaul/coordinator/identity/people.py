"""People who operate the coordinator: create, list, disable, set and change passwords.

A password we generate is shown once and must be changed at the first sign-in. Setting, changing or disabling
ends the person's sessions in the same transaction, and with them every token that was issued in one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity import passwords
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.names import TAKEN, is_for_people, is_name
from bithaul.coordinator.identity.tables import people, sessions
from bithaul.errors import Conflict, InvalidInput, NotFound


@dataclass(frozen=True)
class Person:
    """One row, without its hash."""

    id: str
    name: str
    must_change: bool
    disabled: bool
    created_at: float
    password_changed_at: float


def create_person(c: Coordinator, name: str, *, actor: str = "cli") -> str:
    """Create a person and return the generated password, which is never shown again."""
    if not is_name(name):
        raise InvalidInput(
            f"The name {name[:80]!r} is not allowed: use 1 to 64 characters a-z, 0-9, '.', '_', '-'.",
            code="invalid_name",
        )
    if not is_for_people(name):
        raise InvalidInput(f"The name {name!r} {TAKEN}.", code="invalid_name")
    password = passwords.generate_password()
    now = c.clock.now()
    row = {
        "id": secrets.token_hex(16),
        "name": name,
        "password_hash": passwords.hash_password(password),
        "must_change": True,
        "created_at": now,
        "password_changed_at": now,
    }
    try:
        with c.database.write() as connection:
            connection.execute(insert(people).values(row))
            record(connection, now, actor=actor, action="person.create", subject=name)
    except IntegrityError as error:
        raise Conflict(
            f"{name!r} exists already; for a new password run: bithaul admin reset-password {name}",
            code="person_exists",
        ) from error
    return password


def known_by_provider(connection: Connection, name: str, hashed: str, *, now: float) -> Person:
    """The person of this name; made, with a password that nobody knows, when a provider sends it first.

    A generated password that was never replaced is void from then on: nobody could replace it any more.
    """
    found = find_by_name(connection, name)
    if found is not None:
        person = found[0]
        if not person.must_change or person.disabled:
            return person
        values = {"password_hash": hashed, "must_change": False, "password_changed_at": now}
        connection.execute(update(people).where(people.c.id == person.id).values(values))
        record(connection, now, actor="oidc", action="person.void-password", subject=name)
        return require(connection, name)
    row = {
        "id": secrets.token_hex(16),
        "name": name,
        "password_hash": hashed,
        "must_change": False,
        "created_at": now,
        "password_changed_at": now,
    }
    connection.execute(insert(people).values(row))
    record(connection, now, actor="oidc", action="person.create", subject=name)
    return require(connection, name)


def reset_password(c: Coordinator, name: str, *, actor: str = "cli") -> str:
    """Generate a new password, end the person's sessions, enable the person again. Returns the password."""
    password = passwords.generate_password()
    hashed = passwords.hash_password(password)
    now = c.clock.now()
    with c.database.write() as connection:
        person = require(connection, name)
        connection.execute(
            update(people)
            .where(people.c.id == person.id)
            .values(password_hash=hashed, must_change=True, disabled=False, password_changed_at=now)
        )
        connection.execute(delete(sessions).where(sessions.c.person_id == person.id))
        record(connection, now, actor=actor, action="person.reset-password", subject=name)
    return password


def set_password(connection: Connection, person: Person, hashed: str, *, now: float, keep_sid: str) -> None:
    """Store a password the person chose; every session but `keep_sid` ends."""
    connection.execute(
        update(people)
        .where(people.c.id == person.id)
        .values(password_hash=hashed, must_change=False, password_changed_at=now)
    )
    others = (sessions.c.person_id == person.id) & (sessions.c.sid != keep_sid)
    connection.execute(delete(sessions).where(others))
    record(connection, now, actor=person.name, action="person.change-password", subject=person.name)


def disable_person(c: Coordinator, name: str, *, actor: str = "cli") -> None:
    """No sign-in and no session from now on. Doing it twice is no error."""
    now = c.clock.now()
    with c.database.write() as connection:
        person = require(connection, name)
        connection.execute(update(people).where(people.c.id == person.id).values(disabled=True))
        connection.execute(delete(sessions).where(sessions.c.person_id == person.id))
        record(connection, now, actor=actor, action="person.disable", subject=name)


def list_people(c: Coordinator) -> list[Person]:
    with c.database.read() as connection:
        return [_person(row) for row in connection.execute(select(people).order_by(people.c.name)).mappings()]


def count_people(c: Coordinator) -> int:
    with c.database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(people)).scalar_one())


def find_by_name(connection: Connection, name: str) -> tuple[Person, str] | None:
    """A person and the password hash."""
    row = connection.execute(select(people).where(people.c.name == name)).mappings().one_or_none()
    return None if row is None else (_person(row), row["password_hash"])


def find_by_id(connection: Connection, person_id: str) -> tuple[Person, str] | None:
    row = connection.execute(select(people).where(people.c.id == person_id)).mappings().one_or_none()
    return None if row is None else (_person(row), row["password_hash"])


def require(connection: Connection, name: str) -> Person:
    found = find_by_name(connection, name)
    if found is None:
        raise NotFound(
            f"There is nobody called {name[:80]!r}; list people with: bithaul admin list",
            code="unknown_person",
        )
    return found[0]


def _person(row: RowMapping) -> Person:
    return Person(**{name: row[name] for name in Person.__dataclass_fields__})
