"""Signing keys: RSA 2048 for RS256, states next -> active -> retired, kept encrypted in the database.

A key is published as `next` before it ever signs, signs alone while `active`, and stays published as
`retired` until the longest token it signed has expired. Keys survive restarts; the private half leaves the
database only decrypted in memory and never enters the JWKS.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from joserfc.jwk import RSAKey
from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select, update

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.prepared import Prepared
from bithaul.coordinator.identity import secretfiles
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import secrets_folder
from bithaul.coordinator.identity.tables import signing_keys
from bithaul.errors import Conflict, CorruptFile

JWKS_CACHE_SECONDS = 300
LONGEST_TOKEN_SECONDS = 3600
SKEW_SECONDS = 30
RETIRED_FOR = LONGEST_TOKEN_SECONDS + SKEW_SECONDS
REREAD_SECONDS = 10.0


@dataclass(frozen=True)
class KeyState:
    kid: str
    state: Literal["next", "active", "retired"]
    created_at: float
    activated_at: float | None
    retired_at: float | None


_KEY = Prepared(select(signing_keys).where(signing_keys.c.kid == bindparam("kid")))


class SigningKeys:
    """The keys of one coordinator, decrypted once and found by `kid`."""

    def __init__(self, c: Coordinator) -> None:
        self._c = c
        raw = secretfiles.read_or_create(secrets_folder(c), secretfiles.KEY_ENCRYPTION_KEY)
        self._password = base64.b64encode(raw).decode()
        self._cache: dict[str, RSAKey] = {}
        self._read_at = float("-inf")
        self._ensure()

    def signer(self, connection: Connection) -> tuple[str, RSAKey]:
        """The one active key (never a set to pick from)."""
        row = (
            connection.execute(select(signing_keys).where(signing_keys.c.state == "active")).mappings().one()
        )
        return row["kid"], self._key(row)

    def verifier(self, kid: str) -> RSAKey | None:
        """A known key by id. An unknown id makes the table be read again, at most once in ten seconds."""
        key = self._cache.get(kid)
        if key is None and self._c.clock.now() - self._read_at >= REREAD_SECONDS:
            with self._c.database.read() as connection:
                self._read(connection)
            key = self._cache.get(kid)
        return key

    def is_published(self, connection: Connection, kid: str, *, now: float) -> bool:
        row = _KEY.first(connection, kid=kid)
        return row is not None and _published(dict(zip(signing_keys.c.keys(), row, strict=True)), now)

    def jwks(self) -> dict[str, list[dict[str, object]]]:
        """Public halves of next, active and retired keys."""
        now = self._c.clock.now()
        with self._c.database.read() as connection:
            rows = (
                connection.execute(select(signing_keys).order_by(signing_keys.c.created_at)).mappings().all()
            )
        published = [row for row in rows if _published(row, now)]
        return {"keys": [self._public(row) for row in published]}

    def states(self) -> list[KeyState]:
        with self._c.database.read() as connection:
            rows = (
                connection.execute(select(signing_keys).order_by(signing_keys.c.created_at)).mappings().all()
            )
        return [KeyState(**{name: row[name] for name in KeyState.__dataclass_fields__}) for row in rows]

    def rotate(self, *, actor: str = "cli") -> None:
        """Promote `next`, retire `active`, publish a new `next`, forget keys no token can need."""
        fresh = RSAKey.generate_key(2048, private=True)
        now = self._c.clock.now()
        with self._c.database.write() as connection:
            rows = {row["state"]: row for row in connection.execute(select(signing_keys)).mappings()}
            waiting = rows["next"]
            ready_at = waiting["created_at"] + JWKS_CACHE_SECONDS
            if now < ready_at:
                raise Conflict(
                    f"The next key was published less than {JWKS_CACHE_SECONDS} s ago; rotate again in "
                    f"{ready_at - now:.0f} s, when every verifier knows it.",
                    code="key_too_young",
                )
            connection.execute(
                delete(signing_keys).where(
                    signing_keys.c.state == "retired", signing_keys.c.retired_at < now - RETIRED_FOR
                )
            )
            connection.execute(
                update(signing_keys)
                .where(signing_keys.c.state == "active")
                .values(state="retired", retired_at=now)
            )
            connection.execute(
                update(signing_keys)
                .where(signing_keys.c.kid == waiting["kid"])
                .values(state="active", activated_at=now)
            )
            self._insert(connection, fresh, state="next", now=now)
            record(connection, now, actor=actor, action="signing-key.rotate", subject=waiting["kid"])

    def replace_all(self, *, actor: str = "cli") -> None:
        """After a leak: new keys at once. Every token that any of the old ones has signed is void."""
        pair = _new_pair()
        now = self._c.clock.now()
        with self._c.database.write() as connection:
            connection.execute(delete(signing_keys))
            self._insert_pair(connection, pair, now=now)
            record(connection, now, actor=actor, action="signing-key.replace-all", subject="")

    def _ensure(self) -> None:
        """First start: one active key (nobody can have cached a JWKS yet) and the next one."""
        with self._c.database.read() as connection:
            if connection.execute(select(signing_keys.c.kid).limit(1)).first() is not None:
                self._read(connection)
                return
        pair = _new_pair()
        now = self._c.clock.now()
        with self._c.database.write() as connection:
            if connection.execute(select(signing_keys.c.kid).limit(1)).first() is None:
                self._insert_pair(connection, pair, now=now)
            self._read(connection)

    def _insert_pair(self, connection: Connection, pair: tuple[RSAKey, RSAKey], *, now: float) -> None:
        self._insert(connection, pair[0], state="active", now=now)
        self._insert(connection, pair[1], state="next", now=now)

    def _insert(self, connection: Connection, key: RSAKey, *, state: str, now: float) -> None:
        connection.execute(
            insert(signing_keys).values(
                kid=key.thumbprint(),
                state=state,
                private_pem=key.as_pem(private=True, password=self._password).decode(),
                created_at=now,
                activated_at=now if state == "active" else None,
            )
        )

    def _read(self, connection: Connection) -> None:
        self._read_at = self._c.clock.now()
        for row in connection.execute(select(signing_keys)).mappings():
            self._key(row)

    def _key(self, row: RowMapping) -> RSAKey:
        kid: str = row["kid"]
        if kid not in self._cache:
            try:
                key = RSAKey.import_key(row["private_pem"], password=self._password)
            except ValueError as error:
                raise CorruptFile(
                    "The signing keys cannot be decrypted: secrets/signing-key-encryption does not belong to "
                    "this database; put back the file that was beside it."
                ) from error
            self._cache[kid] = key
        return self._cache[kid]

    def _public(self, row: RowMapping) -> dict[str, object]:
        public = self._key(row).as_dict(private=False)
        return {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": row["kid"],
            "n": public["n"],
            "e": public["e"],
        }


def _new_pair() -> tuple[RSAKey, RSAKey]:
    return RSAKey.generate_key(2048, private=True), RSAKey.generate_key(2048, private=True)


def _published(row: Mapping[Any, Any], now: float) -> bool:
    return bool(row["state"] != "retired" or now < row["retired_at"] + RETIRED_FOR)
