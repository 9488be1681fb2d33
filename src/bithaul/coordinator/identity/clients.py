"""Clients and their secrets: create, rotate, disable, list, and the proof of a secret.

A secret is 256 random bits, shown once, kept as HMAC-SHA-256 under the pepper file. Rotating and disabling
raise the credential version `cv` in the same transaction, so every token issued before is refused from the
next request on, also after a restart. Nothing here talks HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.prepared import Prepared
from bithaul.coordinator.identity import secretfiles
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.names import ACTORS, TAKEN, is_name
from bithaul.coordinator.identity.secretfiles import RandomBytes
from bithaul.coordinator.identity.tables import clients, codes
from bithaul.errors import Conflict, InvalidInput, NotFound, UnknownName
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE

APP_SCOPE = "openid profile"  # of the code flow's clients
PREFIXES = {WORKER_SCOPE: "bhw_", ADMIN_SCOPE: "bha_", APP_SCOPE: "bho_"}
ADMIN_SITE = "bithaul-admin"  # the client id of the coordinator's own admin site
LONGEST_GRACE = 7 * 24 * 3600.0
HINT = 8


@dataclass(frozen=True)
class Client:
    """One row, without its hashes."""

    id: str
    scope: str
    hint: str
    cv: int
    disabled: bool
    created_at: float
    rotated_at: float | None
    last_used_at: float | None
    last_used_from: str | None
    redirect_uris: list[str] | None


class SecretHasher:
    """Hashes and compares client secrets under the pepper; an unknown client costs the same."""

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self._dummy = self.hash("no client has this secret")

    @classmethod
    def of(cls, c: Coordinator) -> SecretHasher:
        return cls(secretfiles.read_or_create(secrets_folder(c), secretfiles.PEPPER))

    def hash(self, secret: str) -> str:
        return hmac.new(self._pepper, secret.encode(), hashlib.sha256).hexdigest()

    def proves(self, row: Mapping[Any, Any] | None, secret: str, *, now: float) -> bool:
        """Whether `secret` is that client's; one path whether it exists, is disabled, or is in its grace."""
        candidate = self.hash(secret)
        current = row["secret_hash"] if row is not None else self._dummy
        previous = (row["previous_hash"] if row is not None else None) or self._dummy
        grace = row is not None and row["previous_until"] is not None and now < row["previous_until"]
        is_current = hmac.compare_digest(candidate, current)
        is_previous = hmac.compare_digest(candidate, previous) and grace
        return (is_current or is_previous) and row is not None and not row["disabled"]


def secrets_folder(c: Coordinator) -> Path:
    return c.settings.directory / "secrets"


def create_client(
    c: Coordinator,
    client_id: str,
    *,
    scope: str,
    actor: str = "cli",
    random: RandomBytes = secrets.token_bytes,
) -> str:
    """Create a client and return its secret, which is never shown again. Conflict when the id is taken."""
    check_client_id(client_id)
    secret = new_secret(scope, random)
    now = c.clock.now()
    row = {
        "id": client_id,
        "scope": scope,
        "secret_hash": SecretHasher.of(c).hash(secret),
        "secret_hint": secret[:HINT],
        "cv": first_cv(),
        "created_at": now,
    }
    try:
        with c.database.write() as connection:
            connection.execute(insert(clients).values(row))
            record(connection, now, actor=actor, action="client.create", subject=client_id, detail=scope)
    except IntegrityError as error:
        raise Conflict(
            f"The client {client_id!r} exists already; for a new secret run: bithaul keys rotate {client_id}",
            code="client_exists",
        ) from error
    return secret


def rotate_client(
    c: Coordinator,
    client_id: str,
    *,
    grace_seconds: float = 0.0,
    actor: str = "cli",
    random: RandomBytes = secrets.token_bytes,
) -> str:
    """Give a client a new secret and return it. Tokens issued so far die at once.

    With a grace the old secret may still fetch new tokens for that long; a second rotation ends it.
    """
    if not 0.0 <= grace_seconds <= LONGEST_GRACE:
        raise InvalidInput(
            f"The grace must be between 0 and {LONGEST_GRACE:.0f} seconds.", code="invalid_grace"
        )
    now = c.clock.now()
    hasher = SecretHasher.of(c)
    with c.database.write() as connection:
        row = _require(connection, client_id)
        secret = new_secret(row["scope"], random)
        connection.execute(
            update(clients)
            .where(clients.c.id == client_id)
            .values(
                secret_hash=hasher.hash(secret),
                secret_hint=secret[:HINT],
                previous_hash=row["secret_hash"] if grace_seconds > 0 else None,
                previous_until=now + grace_seconds if grace_seconds > 0 else None,
                cv=clients.c.cv + 1,
                rotated_at=now,
            )
        )
        detail = f"grace {grace_seconds:.0f} s" if grace_seconds > 0 else ""
        record(connection, now, actor=actor, action="client.rotate", subject=client_id, detail=detail)
    return secret


def disable_client(c: Coordinator, client_id: str, *, actor: str = "cli") -> None:
    """Refuse a client's secret and all its tokens from the next request on. Doing it twice is no error."""
    now = c.clock.now()
    with c.database.write() as connection:
        row = _require(connection, client_id)
        if row["disabled"] and row["previous_hash"] is None:
            return
        connection.execute(
            update(clients)
            .where(clients.c.id == client_id)
            .values(disabled=True, cv=clients.c.cv + 1, previous_hash=None, previous_until=None)
        )
        record(connection, now, actor=actor, action="client.disable", subject=client_id)


def enable_client(c: Coordinator, client_id: str, *, actor: str = "cli") -> None:
    """Accept a client's secret again; tokens from before it was disabled stay dead."""
    now = c.clock.now()
    with c.database.write() as connection:
        if not _require(connection, client_id)["disabled"]:
            return
        connection.execute(update(clients).where(clients.c.id == client_id).values(disabled=False))
        record(connection, now, actor=actor, action="client.enable", subject=client_id)


def delete_client(c: Coordinator, client_id: str, *, actor: str = "cli") -> None:
    """Forget a client; its secret and tokens are refused as those of an unknown one. What it did stays."""
    if client_id == ADMIN_SITE:
        raise InvalidInput("The admin site's own client cannot be deleted.", code="invalid_client_id")
    now = c.clock.now()
    with c.database.write() as connection:
        _require(connection, client_id)
        connection.execute(delete(codes).where(codes.c.client_id == client_id))
        connection.execute(delete(clients).where(clients.c.id == client_id))
        record(connection, now, actor=actor, action="client.delete", subject=client_id)


def list_clients(c: Coordinator) -> list[Client]:
    with c.database.read() as connection:
        return [_client(row) for row in connection.execute(select(clients).order_by(clients.c.id)).mappings()]


_FIND = Prepared(select(clients).where(clients.c.id == bindparam("client")))  # asked with every request


def find(connection: Connection, client_id: str) -> Mapping[Any, Any] | None:
    row = _FIND.first(connection, client=client_id)
    return None if row is None else dict(zip(clients.c.keys(), row, strict=True))


def check_client_id(client_id: str) -> None:
    if not is_name(client_id):
        raise InvalidInput(
            f"The client id {client_id[:80]!r} is not allowed: use 1 to 64 characters a-z, 0-9, '.', '_', "
            "'-', starting with a letter or digit.",
            code="invalid_client_id",
        )
    if client_id in ACTORS:
        raise InvalidInput(f"The client id {client_id!r} {TAKEN}.", code="invalid_client_id")


def first_cv() -> int:
    """Random, so that a client deleted and created again under its id shares no version with its past."""
    return 1 + secrets.randbelow(2**30)


def new_secret(scope: str, random: RandomBytes = secrets.token_bytes) -> str:
    """256 random bits with a readable prefix."""
    if scope not in PREFIXES:
        raise UnknownName(f"Unknown scope {scope[:80]!r}; known: {', '.join(sorted(PREFIXES))}.")
    return PREFIXES[scope] + secretfiles.urlsafe(random(32))


def _require(connection: Connection, client_id: str) -> Mapping[Any, Any]:
    row = find(connection, client_id)
    if row is None:
        raise NotFound(
            f"There is no client {client_id[:80]!r}; list them with: bithaul keys list", code="unknown_client"
        )
    return row


def _client(row: Mapping[Any, Any]) -> Client:
    return Client(
        id=row["id"],
        scope=row["scope"],
        hint=row["secret_hint"],
        cv=row["cv"],
        disabled=row["disabled"],
        created_at=row["created_at"],
        rotated_at=row["rotated_at"],
        last_used_at=row["last_used_at"],
        last_used_from=row["last_used_from"],
        redirect_uris=row["redirect_uris"],
    )
