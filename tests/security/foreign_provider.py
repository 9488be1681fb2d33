"""A small OpenID provider that is not bithaul's, for its tests: it can be told to lie.

It listens on loopback, keeps one account, and is strict where the specifications are: one use of a code, PKCE
S256, the redirect address byte for byte, the client's secret by Basic. Tokens are signed with `cryptography`
alone. `lie` changes claims, headers, keys or documents of the next sign-ins. With an `Authority` it speaks
https on the name `localhost`.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
import html
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from bithaul.coordinator.identity.throttle import Limits

CLIENT, SECRET = "bithaul at home", "a secret: of 100 %"
PASSWORD = "correct horse battery staple"
ADMINS = {"olga": "sub:248289761001"}
WIDE = Limits(per_client_and_address=100_000, per_address=100_000, in_all=100_000)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class Authority:
    """A throw-away certificate authority, as a company has one: its `file`, and certificates for names."""

    def __init__(self, folder: Path, name: str = "Throw-away CA") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(self._name, self._key, days=1)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        self._made = made.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._made.public_bytes(Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int) -> Any:
        now = datetime.datetime.now(datetime.UTC)
        end = now + datetime.timedelta(days=days)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name)
        made = made.public_key(key.public_key()).serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - datetime.timedelta(days=3)).not_valid_after(end)
        return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)

    def context(self, *, name: str = "localhost", days: int = 1) -> ssl.SSLContext:
        """What a server of that name needs; with negative `days` its certificate is over."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, days=days)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        known = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        signed = made.add_extension(known, critical=False).sign(self._key, hashes.SHA256())
        file = self._folder / f"{name}{days}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write_bytes(private + signed.public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


@dataclass
class Key:
    kid: str
    private: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def public(self) -> dict[str, str]:
        numbers = self.private.public_key().public_numbers()
        kind = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid}
        return {**kind, "n": number(numbers.n), "e": number(numbers.e)}

    def sign(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        text = ".".join(b64(json.dumps(part).encode()) for part in (header, claims))
        return f"{text}.{b64(self.private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


@dataclass
class Provider:
    """`lie` may hold: `claims` (a change of them), `header`, `key`, `document`, `token` (the whole text),
    `packed` (answers are sent with gzip)."""

    now: Callable[[], float] = time.time
    subject: str = "248289761001"
    email: str = "olga@example.org"
    keys: list[Key] = field(default_factory=lambda: [Key("k1")])
    lie: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    asks: bool = False  # the person, on a page with a link; else it says yes by itself

    def start(self, tls: ssl.SSLContext | None = None) -> None:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                provider.answer(self, "")

            def do_POST(self) -> None:
                provider.answer(self, self.rfile.read(int(self.headers["content-length"])).decode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # a client that does not trust us hangs up
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        if tls is not None:
            self.server.socket = tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.url = f"https://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: str) -> None:
        parts = urlsplit(request.path)
        self.asked.append(parts.path)
        fields = dict(parse_qsl(body or parts.query, strict_parsing=True)) if body or parts.query else {}
        match parts.path:
            case "/.well-known/openid-configuration":
                self.send(request, 200, self.document())
            case "/jwks":
                self.send(request, 200, {"keys": [key.public() for key in self.keys]})
            case "/authorize" if self.asks and "yes" not in fields:
                self.ask(request)
            case "/authorize":
                request.send_response(302)
                request.send_header("Location", self.authorize(fields))
                request.end_headers()
            case "/token":
                self.send(request, *self.token(fields, request.headers.get("authorization", "")))
            case _:
                self.send(request, 404, {})

    def send(self, request: BaseHTTPRequestHandler, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        request.send_response(status)
        if self.lie.get("packed"):
            body = gzip.compress(body)
            request.send_header("Content-Encoding", "gzip")
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def ask(self, request: BaseHTTPRequestHandler) -> None:
        link = html.escape(f"{request.path}&yes=1")
        body = f'<!doctype html><title>Provider</title><a href="{link}">Yes, I am {self.email}</a>'.encode()
        request.send_response(200)
        request.send_header("Content-Type", "text/html; charset=utf-8")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def document(self) -> dict[str, Any]:
        named = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/jwks"}
        found = {"issuer": self.url, **{name: self.url + path for name, path in named.items()}}
        found["authorization_response_iss_parameter_supported"] = True
        return {**found, **self.lie.get("document", {})}

    def authorize(self, fields: dict[str, str]) -> str:
        """The person has signed in and says yes."""
        assert fields["client_id"] == CLIENT
        assert (fields["response_type"], fields["code_challenge_method"]) == ("code", "S256")
        assert len(fields["code_challenge"]) == 43
        assert len(fields["nonce"]) >= 32
        code = secrets.token_urlsafe()
        self.codes[code] = fields
        sent = {"code": code, "state": fields["state"], "iss": self.url, **self.lie.get("sent", {})}
        return f"{fields['redirect_uri']}?{urlencode({k: v for k, v in sent.items() if v is not None})}"

    def token(self, fields: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        wanted = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if authorization != f"Basic {wanted}":
            return 401, {"error": "invalid_client"}
        asked = self.codes.pop(fields["code"], None)
        challenge = b64(hashlib.sha256(fields["code_verifier"].encode()).digest())
        if asked is None or challenge != asked["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        if fields["redirect_uri"] != asked["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        access = secrets.token_urlsafe()
        digest = hashlib.sha256(access.encode()).digest()
        now = int(self.now())
        claims = {
            "iss": self.url,
            "aud": CLIENT,
            "sub": self.subject,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            "auth_time": now - 5,
            "at_hash": b64(digest[:16]),
            "email": self.email,
            "email_verified": True,
            **self.lie.get("claims", {}),
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        key = self.lie.get("key", self.keys[-1])
        header = {"alg": "RS256", "kid": key.kid, **self.lie.get("header", {})}
        token = self.lie.get("token") or key.sign(header, claims)
        return 200, {"access_token": access, "token_type": "Bearer", "id_token": token}


def begin(browser, url="/admin"):
    """The address at the provider that the browser is sent to."""
    asked = browser.follow(url, stop="/authorize?")
    return asked.headers["location"]


def sign_in(site, browser, url="/admin"):
    """The answer to what the provider sent."""
    came = httpx2.get(begin(browser, url), follow_redirects=False, trust_env=False)
    return browser.get(came.headers["location"])


def is_in(browser):
    return browser.get("/admin").status_code == 200
