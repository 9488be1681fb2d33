"""Authorization codes: 256 random bits, one minute, one use, bound to client, address, challenge and session.

A code is redeemed by one UPDATE that only one caller can win. The row stays until it expires and remembers
what it gave; who comes with a used code and its right verifier has shown that it leaked, and ends that.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from bithaul.coordinator.identity.secretfiles import urlsafe
from bithaul.coordinator.identity.tables import codes

CODE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class CodeRequest:
    """What an authorization request asked for, after it was found valid."""

    client_id: str
    person_id: str
    sid: str
    redirect_uri: str
    scope: str
    nonce: str | None
    challenge: str | None
    auth_time: float


class Code:
    """A code row in Authlib's clothes."""

    def __init__(self, row: RowMapping) -> None:
        self.row = row
        self.key: str = row["code_hash"]

    def get_redirect_uri(self) -> str:
        return str(self.row["redirect_uri"])

    def get_scope(self) -> str:
        return str(self.row["scope"])


def issue(connection: Connection, request: CodeRequest, *, now: float) -> str:
    """Store a code and return it."""
    connection.execute(delete(codes).where(codes.c.expires_at <= now))
    code = urlsafe(secrets.token_bytes(32))
    row = {"code_hash": _hash(code), "expires_at": now + CODE_SECONDS, **vars(request)}
    connection.execute(insert(codes).values(row))
    return code


def exists(connection: Connection, code: str, *, now: float) -> bool:
    """Whether it was issued, to whomever, and has not expired; it may be used already."""
    query = select(codes.c.code_hash).where(codes.c.code_hash == _hash(code), codes.c.expires_at > now)
    return connection.execute(query).first() is not None


def find(connection: Connection, code: str, *, client_id: str, now: float) -> Code | None:
    """The row of a code of this client that has not expired; it may be used already."""
    query = select(codes).where(
        codes.c.code_hash == _hash(code), codes.c.client_id == client_id, codes.c.expires_at > now
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Code(row)


def redeem(connection: Connection, code: Code, *, jti: str, now: float) -> bool:
    """Use the code up for the token `jti`. False: another request was first."""
    query = (
        update(codes)
        .where(codes.c.code_hash == code.key, codes.c.used_at.is_(None))
        .values(used_at=now, jti=jti)
        .returning(codes.c.code_hash)
    )
    return connection.execute(query).first() is not None


def _hash(code: str) -> str:
    return hashlib.sha256(code.encode(errors="replace")).hexdigest()
