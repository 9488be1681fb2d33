"""Access tokens: JWTs after RFC 9068, signed with RS256, built and checked here on the injected clock.

A token is checked from cheap to dear: size, form, JOSE header, signature, claims, then the database (client
enabled, credential version current, key still published, token not denied). Whatever is wrong, the answer is
one and the same `Unauthorized`; no verdict is cached.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from sqlalchemy import Connection, select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.clients import find
from bithaul.coordinator.identity.keys import SKEW_SECONDS, SigningKeys
from bithaul.coordinator.identity.secretfiles import RandomBytes
from bithaul.coordinator.identity.tables import denied_tokens
from bithaul.errors import Unauthorized
from bithaul.exchange.messages import ADMIN_SCOPE, AUDIENCE, WORKER_SCOPE

LIFETIMES: Final = {WORKER_SCOPE: 3600, ADMIN_SCOPE: 900}
MAX_TOKEN_BYTES: Final = 4096
_ALGORITHM: Final = "RS256"
_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
_SEGMENTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_HEADER_NAMES: Final = {"alg", "typ", "kid"}


@dataclass(frozen=True)
class Principal:
    """Who a request is from, as its verified token says."""

    client_id: str
    scopes: frozenset[str]
    jti: str


class InvalidToken(Unauthorized):
    """One message for every reason: a caller learns nothing about which check failed."""

    code = "invalid_token"

    def __init__(self) -> None:
        super().__init__(
            "The access token is missing, expired or not valid; fetch a new one at /connect/token."
        )


class Tokens:
    """Mints and verifies the access tokens of one issuer."""

    def __init__(
        self, c: Coordinator, keys: SigningKeys, *, random: RandomBytes = secrets.token_bytes
    ) -> None:
        self._c = c
        self._keys = keys
        self._random = random
        self._issuer = c.settings.base_url

    def mint(self, connection: Connection, *, client_id: str, scope: str, cv: int) -> str:
        now = int(self._c.clock.now())
        kid, key = self._keys.signer(connection)
        claims = {
            "iss": self._issuer,
            "aud": AUDIENCE,
            "sub": client_id,
            "client_id": client_id,
            "iat": now,
            "exp": now + lifetime(scope),
            "jti": self._random(16).hex(),
            "scope": scope,
            "cv": cv,
        }
        return jwt.encode(
            {"alg": _ALGORITHM, "typ": "at+jwt", "kid": kid}, claims, key, algorithms=[_ALGORITHM]
        )

    def verify(self, token: str) -> Principal:
        """The principal of a token, or InvalidToken."""
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken
        kid = _key_id(token)
        key = self._keys.verifier(kid)
        if key is None:
            raise InvalidToken
        try:
            claims: dict[str, Any] = jwt.decode(token, key, algorithms=[_ALGORITHM]).claims
        except (JoseError, ValueError, RecursionError) as error:
            raise InvalidToken from error
        now = self._c.clock.now()
        self._check_claims(claims, now)
        principal = Principal(claims["client_id"], frozenset(claims["scope"].split(" ")), claims["jti"])
        with self._c.database.read() as connection:
            self._check_rows(connection, principal, kid=kid, cv=claims["cv"], now=now)
        return principal

    def _check_claims(self, claims: dict[str, Any], now: float) -> None:
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        checks = (
            claims.get("iss") == self._issuer,
            AUDIENCE in audiences,
            all(isinstance(claims.get(name), str) for name in ("sub", "client_id", "jti", "scope")),
            claims.get("sub") == claims.get("client_id"),
            all(type(claims.get(name)) is int for name in ("exp", "iat", "cv")),
            "nbf" not in claims or type(claims["nbf"]) is int,
        )
        if not all(checks):
            raise InvalidToken
        issued, expires, not_before = claims["iat"], claims["exp"], claims.get("nbf", claims["iat"])
        if not (max(issued, not_before) <= now + SKEW_SECONDS and 0 <= issued < expires):
            raise InvalidToken
        if now >= expires + SKEW_SECONDS:
            raise InvalidToken

    def _check_rows(
        self, connection: Connection, principal: Principal, *, kid: str, cv: int, now: float
    ) -> None:
        row = find(connection, principal.client_id)
        if row is None or row["disabled"] or row["cv"] != cv:
            raise InvalidToken
        if not principal.scopes <= set(row["scope"].split(" ")):
            raise InvalidToken
        if not self._keys.is_published(connection, kid, now=now):
            raise InvalidToken
        denied = select(denied_tokens.c.jti).where(denied_tokens.c.jti == principal.jti)
        if connection.execute(denied).first() is not None:
            raise InvalidToken


def lifetime(scope: str) -> int:
    """Seconds a token of this scope lives: the shortest of its parts."""
    return min(LIFETIMES[part] for part in scope.split(" "))


def _key_id(token: str) -> str:
    """The `kid`, after the form and the JOSE header were checked; nothing else of the header is believed."""
    match = _SEGMENTS.fullmatch(token)
    if match is None or not all(_is_canonical(segment) for segment in match.groups()):
        raise InvalidToken
    try:
        header = json.loads(_decode(match[1]))
    except (ValueError, RecursionError) as error:
        raise InvalidToken from error
    if not isinstance(header, dict) or set(header) != _HEADER_NAMES:
        raise InvalidToken
    kid, typ = header["kid"], header["typ"]
    if header["alg"] != _ALGORITHM or not isinstance(typ, str) or typ.lower() not in _TYPES:
        raise InvalidToken
    if not isinstance(kid, str):
        raise InvalidToken
    return kid


def _is_canonical(segment: str) -> bool:
    """Whether no second spelling of these bytes was used (unused low bits set in the last character)."""
    try:
        return base64.urlsafe_b64encode(_decode(segment)).rstrip(b"=").decode() == segment
    except binascii.Error:
        return False


def _decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
