"""Access and ID tokens: JWTs signed with RS256, built and checked here on the injected clock.

Access tokens follow RFC 9068. One of the code flow names a person (`sub`) and dies with the session (`sid`).

A token is checked from cheap to dear: size, form, JOSE header, signature, claims, then the database (client
enabled, credential version current, key still published, token not denied). Whatever is wrong, the answer is
one and the same `Unauthorized`; no verdict is cached.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import secrets
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import JoseError
from sqlalchemy import Connection, bindparam, insert, select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.prepared import Prepared
from bithaul.coordinator.identity.clients import find
from bithaul.coordinator.identity.keys import SKEW_SECONDS, SigningKeys
from bithaul.coordinator.identity.secretfiles import RandomBytes, urlsafe
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.tables import denied_tokens
from bithaul.errors import Unauthorized
from bithaul.exchange.messages import ADMIN_SCOPE, AUDIENCE, WORKER_SCOPE

LIFETIMES: Final = {WORKER_SCOPE: 3600, ADMIN_SCOPE: 900, "openid": 900, "profile": 900}
ID_TOKEN_SECONDS: Final = 300
MAX_TOKEN_BYTES: Final = 4096
_ALGORITHM: Final = "RS256"
_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
_ID_TYPES: Final = frozenset({"jwt"})
_SEGMENTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_HEADER_NAMES: Final = {"alg", "typ", "kid"}
_DENIED = Prepared(select(denied_tokens.c.jti).where(denied_tokens.c.jti == bindparam("jti")))


@dataclass(frozen=True)
class Principal:
    """Who a request is from, as its verified token says."""

    client_id: str
    scopes: frozenset[str]
    jti: str
    subject: str  # the client, or the person of a token of the code flow
    sid: str | None
    issued_at: int
    expires_at: int


@dataclass(frozen=True)
class Grant:
    """What a token of the code flow is for: a person, in a session, since a sign-in."""

    person_id: str
    sid: str
    auth_time: int


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
        self,
        c: Coordinator,
        keys: SigningKeys,
        sessions: Sessions,
        *,
        random: RandomBytes = secrets.token_bytes,
    ) -> None:
        self._c = c
        self._keys = keys
        self._sessions = sessions
        self._random = random
        self._issuer = c.settings.base_url

    def new_jti(self) -> str:
        return self._random(16).hex()

    def mint(
        self,
        connection: Connection,
        *,
        client_id: str,
        scope: str,
        cv: int,
        jti: str | None = None,
        grant: Grant | None = None,
    ) -> str:
        """An access token."""
        now = int(self._c.clock.now())
        claims: dict[str, object] = {
            "iss": self._issuer,
            "aud": AUDIENCE,
            "sub": client_id if grant is None else grant.person_id,
            "client_id": client_id,
            "iat": now,
            "exp": now + lifetime(scope),
            "jti": jti or self.new_jti(),
            "scope": scope,
            "cv": cv,
        }
        if grant is not None:
            claims |= {"sid": grant.sid, "auth_time": grant.auth_time}
        return self._sign(connection, claims, typ="at+jwt")

    def mint_id_token(
        self, connection: Connection, *, client_id: str, grant: Grant, nonce: str | None, access_token: str
    ) -> str:
        """An OpenID Connect ID token for the client; no names in it."""
        now = int(self._c.clock.now())
        claims: dict[str, object] = {
            "iss": self._issuer,
            "aud": client_id,
            "sub": grant.person_id,
            "iat": now,
            "exp": now + ID_TOKEN_SECONDS,
            "auth_time": grant.auth_time,
            "sid": grant.sid,
            "at_hash": at_hash(access_token),
        }
        if nonce is not None:
            claims["nonce"] = nonce
        return self._sign(connection, claims, typ="JWT")

    def read_id_token(self, token: str) -> dict[str, Any]:
        """The claims of an ID token we issued, expired or not: a hint may be as old as a key that is still
        published. Raises InvalidToken."""
        claims = self._signed(token, types=_ID_TYPES)
        named = all(_is_name(claims.get(name)) for name in ("aud", "sub", "sid"))
        if claims.get("iss") != self._issuer or not named or "scope" in claims:
            raise InvalidToken
        kid, now = _key_id(token, types=_ID_TYPES), self._c.clock.now()
        with self._c.database.read() as rows:
            if not self._keys.is_published(rows, kid, now=now):
                raise InvalidToken
        return claims

    def deny(self, connection: Connection, *, jti: str, expires_at: int) -> None:
        """Refuse one token from now on; twice is no error."""
        known = select(denied_tokens.c.jti).where(denied_tokens.c.jti == jti)
        if connection.execute(known).first() is None:
            until = expires_at + SKEW_SECONDS
            connection.execute(insert(denied_tokens).values(jti=jti, expires_at=until))

    def _sign(self, connection: Connection, claims: dict[str, object], *, typ: str) -> str:
        kid, key = self._keys.signer(connection)
        header = {"alg": _ALGORITHM, "typ": typ, "kid": kid}
        return jwt.encode(header, claims, key, algorithms=[_ALGORITHM])

    def verify(self, token: str, *, connection: Connection | None = None) -> Principal:
        """The principal of an access token, or InvalidToken. `connection`: as its transaction sees it."""
        claims = self._signed(token, types=_TYPES)
        now = self._c.clock.now()
        self._check_claims(claims, now)
        principal = Principal(
            client_id=claims["client_id"],
            scopes=frozenset(claims["scope"].split(" ")),
            jti=claims["jti"],
            subject=claims["sub"],
            sid=claims.get("sid"),
            issued_at=claims["iat"],
            expires_at=claims["exp"],
        )
        kid = _key_id(token, types=_TYPES)
        with self._c.database.read() if connection is None else nullcontext(connection) as rows:
            self._check_rows(rows, principal, kid=kid, cv=claims["cv"], now=now)
        return principal

    def _signed(self, token: str, *, types: frozenset[str]) -> dict[str, Any]:
        """The claims of a token of these types that a key of ours has signed."""
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken
        key = self._keys.verifier(_key_id(token, types=types))
        if key is None:
            raise InvalidToken
        try:
            return dict(jwt.decode(token, key, algorithms=[_ALGORITHM]).claims)
        except (JoseError, ValueError, RecursionError) as error:
            raise InvalidToken from error

    def _check_claims(self, claims: dict[str, Any], now: float) -> None:
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        checks = (
            claims.get("iss") == self._issuer,
            AUDIENCE in audiences,
            all(_is_name(claims.get(name)) for name in ("sub", "client_id", "jti")),
            isinstance(claims.get("scope"), str),
            claims.get("sub") == claims.get("client_id")
            if claims.get("sid") is None
            else _is_name(claims["sid"]),
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
        if principal.sid is not None:
            session = self._sessions.alive(connection, principal.sid)
            if session is None or session.person_id != principal.subject:
                raise InvalidToken
        if not self._keys.is_published(connection, kid, now=now):
            raise InvalidToken
        if _DENIED.first(connection, jti=principal.jti) is not None:
            raise InvalidToken


def at_hash(access_token: str) -> str:
    """The left half of the SHA-256 (OpenID Connect Core, 3.1.3.6)."""
    return urlsafe(hashlib.sha256(access_token.encode()).digest()[:16])


def lifetime(scope: str) -> int:
    """Seconds a token of this scope lives: the shortest of its parts."""
    return min(LIFETIMES[part] for part in scope.split(" "))


def _key_id(token: str, *, types: frozenset[str]) -> str:
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
    if header["alg"] != _ALGORITHM or not isinstance(typ, str) or typ.lower() not in types:
        raise InvalidToken
    if not isinstance(kid, str):
        raise InvalidToken
    return kid


def _is_name(value: object) -> bool:
    """Whether a row may be looked up by it: both databases raise for some letters and for other types."""
    return isinstance(value, str) and 0 < len(value) <= 64 and value.isascii() and value.isprintable()


def _is_canonical(segment: str) -> bool:
    """Whether no second spelling of these bytes was used (unused low bits set in the last character)."""
    try:
        return base64.urlsafe_b64encode(_decode(segment)).rstrip(b"=").decode() == segment
    except binascii.Error:
        return False


def _decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
