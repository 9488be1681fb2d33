"""A fuzz target that can sign: headers and claims made of the input, under the coordinator's own key.

The other target for tokens stays before the signature, so nothing behind it is reached. Here every token is
well signed, and an oracle written from RFC 9068 and the security page (not from `tokens.py`) says which of
them are right: exactly those may be accepted, by the verifier and by a route. Anything but `InvalidToken` for
the rest is a finding. `counts` tells how many came behind the signature and how many were accepted.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import atheris
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bithaul.coordinator.app import create_app
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.identity.apps import register_app
from bithaul.coordinator.identity.clients import create_client, find
from bithaul.coordinator.identity.keys import SigningKeys
from bithaul.coordinator.identity.people import create_person, require
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.tokens import MAX_TOKEN_BYTES, InvalidToken, Tokens
from bithaul.coordinator.settings import Settings

NOW = 1_800_000_000
SKEW = 30
NAMES = ("iss", "aud", "sub", "client_id", "iat", "exp", "jti", "scope", "cv", "sid", "auth_time", "nbf")
ROUTE_EVERY = 16  # a request through the whole application costs twenty verifications


class Still:
    def now(self) -> float:
        return float(NOW)

    def monotonic(self) -> float:
        return float(NOW)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Oracle:
    """What is right, told without a look at the code that decides."""

    issuer: str
    kids: set[str]
    clients: dict[str, tuple[int, set[str]]]  # credential version and scopes
    sessions: dict[str, str] = field(default_factory=dict)  # sid: whose

    def access(self, header: Any, claims: Any) -> bool:
        types = ("at+jwt", "application/at+jwt")
        return self._header(header, types) and isinstance(claims, dict) and self._claims(claims)

    def id_token(self, header: Any, claims: Any) -> bool:
        if not self._header(header, ("jwt",)) or not isinstance(claims, dict):
            return False
        named = all(_is_name(claims.get(name)) for name in ("aud", "sub", "sid"))
        return bool(named and claims.get("iss") == self.issuer and "scope" not in claims)

    def _header(self, header: Any, types: tuple[str, ...]) -> bool:
        if not isinstance(header, dict) or sorted(header) != ["alg", "kid", "typ"]:
            return False
        typ, kid = header["typ"], header["kid"]
        known = isinstance(typ, str) and typ.lower() in types and isinstance(kid, str) and kid in self.kids
        return bool(known and header["alg"] == "RS256")

    def _claims(self, claims: dict[str, Any]) -> bool:
        def whole(name: str) -> bool:
            return type(claims.get(name)) is int

        def text(name: str) -> bool:
            return isinstance(claims.get(name), str)

        audience = claims.get("aud")
        if claims.get("iss") != self.issuer:
            return False
        if audience != "bithaul" and not (isinstance(audience, list) and "bithaul" in audience):
            return False
        if not all(map(whole, ("exp", "iat", "cv"))) or not text("scope"):
            return False
        if not all(_is_name(claims.get(name)) for name in ("sub", "client_id", "jti")):
            return False
        begins = [claims["iat"]]
        if "nbf" in claims:
            if not whole("nbf"):
                return False
            begins.append(claims["nbf"])
        if not 0 <= claims["iat"] < claims["exp"] or max(begins) > NOW + SKEW or claims["exp"] + SKEW <= NOW:
            return False
        cv, scopes = self.clients.get(claims["client_id"], (None, set()))
        if claims["cv"] != cv or not set(claims["scope"].split(" ")) <= scopes:
            return False
        if claims.get("sid") is None:
            return bool(claims["sub"] == claims["client_id"])
        return text("sid") and self.sessions.get(claims["sid"]) == claims["sub"]


class Signed:
    """Callable with the fuzzer's bytes."""

    def __init__(self, folder: Path) -> None:
        self.counts = {"behind the signature": 0, "accepted": 0, "over a route": 0}
        c = open_coordinator(Settings(directory=folder), clock=Still())
        create_client(c, "w1", scope="bithaul.worker")
        create_client(c, "operator", scope="bithaul.admin")
        register_app(c, "app", redirect_uris=["https://app.example/back"])
        create_person(c, "ann")
        keys, sessions = SigningKeys(c), Sessions(c)
        self.tokens = Tokens(c, keys, sessions)
        self.app = create_app(c)
        self.loop = asyncio.new_event_loop()
        with c.database.write() as connection:
            self.kid, key = keys.signer(connection)
            person = require(connection, "ann")
            sessions.start(connection, person, replaces=None, address="", agent="")
            rows = {name: find(connection, name) for name in ("w1", "operator", "app")}
        self.person, self.sid = person.id, sessions.live()[0].sid
        self.cv = {name: row["cv"] for name, row in rows.items()}
        self.key = load_pem_private_key(key.as_pem(private=True), None)
        self.issuer = c.settings.base_url
        self.oracle = Oracle(
            self.issuer,
            {str(shown["kid"]) for shown in keys.jwks()["keys"]},
            {name: (row["cv"], set(row["scope"].split(" "))) for name, row in rows.items()},
            {self.sid: self.person},
        )
        self.known = [self.issuer, "bithaul", "w1", "operator", "app", "ann", self.person, self.sid, "openid"]
        self.known += ["bithaul.worker", "bithaul.admin", "openid profile", self.kid, *self.cv.values(), ""]
        self._count_what_is_decoded()

    def __call__(self, data: bytes) -> None:
        header, payload = self._parts(atheris.FuzzedDataProvider(data))
        text = f"{b64(header)}.{b64(payload)}"
        signature = self.key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        token = f"{text}.{b64(signature)}"
        head, claims = _read(header), _read(payload)
        short = len(token) <= MAX_TOKEN_BYTES
        right = short and self.oracle.access(head, claims)
        self._expect(right, self._accepts(self.tokens.verify, token), "access", header, payload)
        right_id = short and self.oracle.id_token(head, claims)
        self._expect(right_id, self._accepts(self.tokens.read_id_token, token), "id", header, payload)
        self.counts["accepted"] += right + right_id
        if right or data[-1:] < bytes([256 // ROUTE_EVERY]):
            status = self.loop.run_until_complete(self._ask(token))
            worker = right and "bithaul.worker" in claims["scope"].split(" ")
            expected = 404 if worker else 403 if right else 401  # there is no run
            if status != expected:
                raise AssertionError(f"{status} instead of {expected}: {header!r} {payload!r}")
            self.counts["over a route"] += 1

    def _expect(self, right: bool, accepted: bool, kind: str, header: bytes, payload: bytes) -> None:
        if right != accepted:
            verdict = "accepted" if accepted else "refused"
            raise AssertionError(f"{kind} token wrongly {verdict}: {header!r} {payload!r}")

    @staticmethod
    def _accepts(verify: Any, token: str) -> bool:
        try:
            verify(token)
        except InvalidToken:
            return False
        return True

    def _parts(self, p: Any) -> tuple[bytes, bytes]:
        header: dict[str, Any] = {
            "alg": "RS256",
            "typ": p.PickValueInList(["at+jwt", "JWT"]),
            "kid": self.kid,
        }
        claims = self._right(p.PickValueInList(["w1", "operator", "app"]), typ=header["typ"])
        match p.ConsumeIntInRange(0, 7):
            case 0:
                return _written(header), p.ConsumeBytes(4096)
            case 1:
                return p.ConsumeBytes(4096), _written(claims)
            case 2:
                self._change(header, ("alg", "typ", "kid", "crit", "jwk"), p)
            case _:
                pass
        self._change(claims, NAMES, p)
        return _written(header), _written(claims)

    def _right(self, client: str, *, typ: str) -> dict[str, Any]:
        """Claims that are accepted when nothing is changed."""
        claims: dict[str, Any] = {"iss": self.issuer, "iat": NOW, "exp": NOW + 300}
        if typ == "JWT":
            return claims | {"aud": client, "sub": self.person, "sid": self.sid, "auth_time": NOW}
        claims |= {"aud": "bithaul", "client_id": client, "jti": "0" * 32, "cv": self.cv[client]}
        if client == "app":
            own = {"sub": self.person, "sid": self.sid, "auth_time": NOW, "scope": "openid profile"}
            return claims | own
        return claims | {
            "sub": client,
            "scope": {"w1": "bithaul.worker", "operator": "bithaul.admin"}[client],
        }

    def _change(self, told: dict[str, Any], names: tuple[str, ...], p: Any) -> None:
        for _ in range(p.ConsumeIntInRange(0, 3)):
            name = p.PickValueInList([*names]) if p.ConsumeIntInRange(0, 9) else p.ConsumeUnicode(12)
            if p.ConsumeIntInRange(0, 5):
                told[name] = self._value(p)
            else:
                told.pop(name, None)

    def _value(self, p: Any) -> Any:
        """Anything that JSON, as Python writes it, can say."""
        match p.ConsumeIntInRange(0, 11):
            case 0:
                return p.ConsumeUnicode(60)
            case 1:
                return p.ConsumeInt(9)
            case 2:
                return p.ConsumeBool()
            case 3:
                return None
            case 4:
                return p.ConsumeFloat()  # not a number and infinities too
            case 5:
                return [self._value(p) for _ in range(p.ConsumeIntInRange(0, 3))]
            case 6:
                return {p.ConsumeUnicode(8): self._value(p)}
            case 7:
                return 10 ** p.ConsumeIntInRange(9, 2500)
            case 8:
                return float(NOW)
            case 9 | 10:
                return NOW + p.ConsumeIntInRange(-40, 40)
            case _:
                return p.PickValueInList(self.known)

    def _count_what_is_decoded(self) -> None:
        decode = self.tokens._signed

        def counted(token: str, *, types: frozenset[str]) -> dict[str, Any]:
            claims = decode(token, types=types)
            self.counts["behind the signature"] += 1
            return claims

        self.tokens._signed = counted  # type: ignore[method-assign]

    async def _ask(self, token: str) -> int:
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        path = "/weights/current"
        headers = [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer " + token.encode())]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET"}
        scope |= {"scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"root_path": "", "headers": headers, "client": None, "server": None}
        await self.app(scope, receive, send)
        return statuses[0]


def _is_name(value: object) -> bool:
    """Of a row: what a database can be asked for (1 to 64 printable ASCII letters)."""
    return isinstance(value, str) and 1 <= len(value) <= 64 and all(" " <= letter <= "~" for letter in value)


def _written(value: object) -> bytes:
    return json.dumps(value).encode()


def _read(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
