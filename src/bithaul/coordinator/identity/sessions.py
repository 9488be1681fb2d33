"""Sessions of people in browsers: rows that can be listed and ended, never a signed cookie.

The cookie holds 256 random bits, the row their SHA-256. The id changes at sign-in, when the admin site
accepts the session, and at a password change; `sid` names the session in tokens and lists and opens
nothing. The CSRF token is an HMAC of the cookie under the pepper, so it is per session and stored nowhere.
Each remembers the way by which its person came in, and ends with the start whose settings have it no more.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, delete, func, insert, select, update

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity import secretfiles
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import secrets_folder
from bithaul.coordinator.identity.people import Person
from bithaul.coordinator.identity.tables import people, sessions, sign_ins
from bithaul.coordinator.settings import Settings
from bithaul.errors import NotFound

SIGN_IN_SECONDS: Final = 600.0
MOST_SIGN_INS: Final = 10_000  # begun at the same time; a flood pushes the oldest out, not the disk
TOUCH_SECONDS: Final = 60.0  # activity is written at most so often
DAY: Final = 86_400.0
PASSWORD: Final = ""  # the way of a session that a password has opened


@dataclass(frozen=True)
class Session:
    """A live session and whose it is."""

    sid: str
    person_id: str
    name: str
    must_change: bool
    created_at: float
    auth_time: float
    last_seen_at: float
    admin_since: float | None
    address: str
    agent: str


class Sessions:
    """Every method that takes a cookie takes what the browser sent, which may be anything or None."""

    def __init__(self, c: Coordinator) -> None:
        self._c = c
        self._pepper = secretfiles.read_or_create(secrets_folder(c), secretfiles.PEPPER)

    def derive(self, cookie: str, purpose: str) -> str:
        """A secret bound to a cookie: CSRF token, the admin site's state, nonce, verifier. 43 letters."""
        text = f"{purpose}\0{cookie}".encode(errors="replace")
        digest = hmac.new(self._pepper, text, hashlib.sha256).digest()
        return secretfiles.urlsafe(digest)

    def csrf(self, cookie: str) -> str:
        return self.derive(cookie, "csrf")

    # Sign-ins that have begun

    def begin_sign_in(self) -> str:
        """The cookie of a new sign-in, good for ten minutes."""
        cookie = _fresh()
        now = self._c.clock.now()
        with self._c.database.write() as connection:
            connection.execute(delete(sign_ins).where(sign_ins.c.created_at <= now - SIGN_IN_SECONDS))
            count = connection.execute(select(func.count()).select_from(sign_ins)).scalar_one()
            if count >= MOST_SIGN_INS:
                oldest = select(sign_ins.c.id_hash).order_by(sign_ins.c.created_at).limit(MOST_SIGN_INS // 10)
                connection.execute(delete(sign_ins).where(sign_ins.c.id_hash.in_(oldest)))
            connection.execute(insert(sign_ins).values(id_hash=_hash(cookie), created_at=now))
        return cookie

    def is_sign_in(self, cookie: str | None) -> bool:
        if cookie is None:
            return False
        with self._c.database.read() as connection:
            row = connection.execute(select(sign_ins).where(sign_ins.c.id_hash == _hash(cookie))).first()
        return row is not None and self._c.clock.now() < row.created_at + SIGN_IN_SECONDS

    def end_sign_in(self, cookie: str) -> bool:
        """Use it up; False when it was not there: only one caller wins."""
        with self._c.database.write() as connection:
            return (
                connection.execute(delete(sign_ins).where(sign_ins.c.id_hash == _hash(cookie))).rowcount == 1
            )

    # Sessions

    def start(
        self,
        connection: Connection,
        person: Person,
        *,
        replaces: str | None,
        address: str,
        agent: str,
        proven_at: float | None = None,
        ends_at: float | None = None,
    ) -> str:
        """A new id for a person who has just proven the password. The browser's former id is dead.

        `proven_at`: when a foreign provider has seen the person; the admin site accepts this session at once.
        `ends_at`: whatever happens, not later.

        The same person's session goes on under its `sid` (its tokens live); another person's ends.
        """
        cookie = _fresh()
        now = self._c.clock.now()
        fresh: dict[str, object] = {
            "id_hash": _hash(cookie),
            "created_at": now,
            "auth_time": now if proven_at is None else proven_at,
            "last_seen_at": now,
            "address": address[:64],
            "agent": agent[:200],
            "way": PASSWORD if proven_at is None else way_of(self._c.settings, person.name),
            "ends_at": ends_at,
        }
        if proven_at is not None:
            fresh["admin_since"] = now
        before = self._row(connection, replaces)
        if before is not None and before["person_id"] == person.id:
            connection.execute(update(sessions).where(sessions.c.sid == before["sid"]).values(fresh))
            return cookie
        if before is not None:
            connection.execute(delete(sessions).where(sessions.c.sid == before["sid"]))
        row = {"sid": secrets.token_hex(16), "person_id": person.id, **fresh}
        connection.execute(insert(sessions).values(row))
        return cookie

    def find(self, cookie: str | None, *, active: bool = True) -> Session | None:
        """The live session of a cookie. `active` False: a page that refreshes itself is no activity."""
        with self._c.database.read() as connection:
            row = self._row(connection, cookie)
        if row is None:
            return None
        now = self._c.clock.now()
        if active and now - row["last_seen_at"] >= TOUCH_SECONDS:
            with self._c.database.write() as connection:
                connection.execute(
                    update(sessions).where(sessions.c.sid == row["sid"]).values(last_seen_at=now)
                )
        return _session(row)

    def renew(self, connection: Connection, sid: str, *, admin: bool = False) -> str:
        """A new id for the same session, at a change of privilege; with `admin` the admin site accepts it."""
        cookie = _fresh()
        values: dict[str, object] = {"id_hash": _hash(cookie)}
        if admin:
            values["admin_since"] = self._c.clock.now()
        changed = connection.execute(update(sessions).where(sessions.c.sid == sid).values(values))
        if changed.rowcount != 1:
            raise _unknown()
        return cookie

    def live(self, person_id: str | None = None) -> list[Session]:
        """Live sessions, of one person or of all, the newest activity first."""
        now = self._c.clock.now()
        query = _joined().order_by(sessions.c.last_seen_at.desc())
        if person_id is not None:
            query = query.where(sessions.c.person_id == person_id)
        with self._c.database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [_session(row) for row in rows if self._alive(row, now)]

    def end(self, sid: str, *, actor: str, person_id: str | None = None) -> None:
        """End one session, at once. With `person_id` only if it is that person's. NotFound otherwise."""
        query = delete(sessions).where(sessions.c.sid == sid)
        if person_id is not None:
            query = query.where(sessions.c.person_id == person_id)
        with self._c.database.write() as connection:
            if connection.execute(query).rowcount != 1:
                raise _unknown()
            record(connection, self._c.clock.now(), actor=actor, action="session.end", subject=sid)

    def end_all(self, person_id: str, *, actor: str) -> int:
        """Sign out everywhere; how many sessions ended."""
        with self._c.database.write() as connection:
            query = delete(sessions).where(sessions.c.person_id == person_id)
            ended = connection.execute(query).rowcount
            record(connection, self._c.clock.now(), actor=actor, action="session.end-all", subject=person_id)
        return ended

    def end_others(self) -> int:
        """End the sessions whose way in the settings no longer have; how many. At the start they changed for.

        A password's that counts for a while only has an end of its own, and goes on until then.
        """
        columns = (sessions.c.sid, sessions.c.way, sessions.c.ends_at, people.c.name)
        query = select(*columns).join(people, people.c.id == sessions.c.person_id)
        with self._c.database.write() as connection:
            gone = [
                row.sid
                for row in connection.execute(query)
                if row.ends_at is None and row.way != way_of(self._c.settings, row.name)
            ]
            ended = connection.execute(delete(sessions).where(sessions.c.sid.in_(gone))).rowcount
            if ended:
                record(
                    connection,
                    self._c.clock.now(),
                    actor="system",
                    action="session.end-others",
                    subject="",
                    detail=f"{ended} whose way in is no longer in the settings",
                )
        return ended

    def alive(self, connection: Connection, sid: str) -> Session | None:
        """The live session of this `sid`: a token of the code flow dies with it."""
        row = connection.execute(_joined().where(sessions.c.sid == sid)).mappings().one_or_none()
        return None if row is None or not self._alive(row, self._c.clock.now()) else _session(row)

    def _row(self, connection: Connection, cookie: str | None) -> RowMapping | None:
        if cookie is None:
            return None
        query = _joined().where(sessions.c.id_hash == _hash(cookie))
        row = connection.execute(query).mappings().one_or_none()
        return None if row is None or not self._alive(row, self._c.clock.now()) else row

    def _alive(self, row: RowMapping, now: float) -> bool:
        settings = self._c.settings
        return bool(
            not row["disabled"]
            and now < row["last_seen_at"] + settings.session_idle_seconds
            and now < row["created_at"] + settings.session_days * DAY
            and (row["ends_at"] is None or now < row["ends_at"])
        )


def way_of(settings: Settings, name: str) -> str | None:
    """How the settings let this person in: by password, by an account of the provider's, or not at all."""
    if not settings.oidc_issuer:
        return PASSWORD
    account = settings.oidc_admins.get(name)
    return None if account is None else f"{settings.oidc_issuer} {account}"


def _joined() -> Select[*tuple[Any, ...]]:
    columns = [people.c.name, people.c.must_change, people.c.disabled]
    return select(sessions, *columns).join(people, people.c.id == sessions.c.person_id)


def _session(row: RowMapping) -> Session:
    return Session(**{name: row[name] for name in Session.__dataclass_fields__})


def _fresh() -> str:
    return secretfiles.urlsafe(secrets.token_bytes(32))


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode(errors="replace")).hexdigest()


def _unknown() -> NotFound:
    return NotFound("There is no such session; it may have ended already.", code="unknown_session")
