"""Authlib's AuthorizationServer over one database session: request, client methods, answers.

Authlib has no Starlette side, so this is ours; it does no I/O but the database session it is given, and it
is used inside one call of the thread pool. The overrides of the security page are marked A1 to A11: each is
pinned by a test of that number. One `ProviderServer` serves one request and is thrown away. The grants are in
`grants.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote_plus

from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, InvalidRequestError, OAuth2Request
from authlib.oauth2.rfc6749.errors import InvalidClientError, InvalidScopeError, OAuth2Error
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from sqlalchemy import Connection

from bithaul.coordinator.identity.clients import SecretHasher, find
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.tokens import Grant, Tokens, lifetime

METHODS = ["client_secret_basic", "client_secret_post"]
CLIENT_CREDENTIALS, AUTHORIZATION_CODE = "client_credentials", "authorization_code"
OPENID = "openid"
_DESCRIPTION = "Client authentication failed."
_MAX_SCOPE = 200
_ENDPOINTS = {"token", "revocation", "introspection"}


@dataclass(frozen=True)
class TokenForm:
    """A parsed request: its fields (none repeated) and the Authorization header, if any."""

    fields: Mapping[str, str]
    authorization: str | None

    def claimed_client(self) -> str:
        """The client id the request names, for throttling only; it proves nothing."""
        basic = _basic(self.authorization)
        return basic[0] if basic else self.fields.get("client_id", "")


@dataclass(frozen=True)
class TokenAnswer:
    status: int
    body: dict[str, object]
    headers: dict[str, str]
    client_id: str | None  # who proved itself; None when nobody did

    @property
    def failed_authentication(self) -> bool:
        """A guess at a secret or at a code, to be counted."""
        return self.status == 401 or self.body.get("error") == "invalid_grant"


class _Request(OAuth2Request):  # type: ignore[misc]  # Authlib carries no types
    """Authlib's request over a parsed form. A2: the URI it wants is the https spelling of a fixed name."""

    def __init__(self, form: TokenForm) -> None:
        headers = {} if form.authorization is None else {"Authorization": form.authorization}
        super().__init__("POST", "https://token-endpoint.invalid/connect/token", headers=headers)
        self.payload = BasicOAuth2Payload(dict(form.fields))
        self._fields = dict(form.fields)

    @property
    def args(self) -> dict[str, str]:
        return {}

    @property
    def form(self) -> dict[str, str]:
        return self._fields


class Client(ClientMixin):  # type: ignore[misc]  # Authlib carries no types
    """A client row in Authlib's clothes."""

    def __init__(self, row: Mapping[Any, Any]) -> None:
        self.row = row
        self.id: str = row["id"]

    def get_client_id(self) -> str:
        return self.id

    @property
    def redirect_uris(self) -> list[str]:
        """Empty for a client that has no code flow."""
        return list(self.row["redirect_uris"] or [])

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return endpoint in _ENDPOINTS and method in METHODS

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == (AUTHORIZATION_CODE if self.redirect_uris else CLIENT_CREDENTIALS)

    def get_allowed_scope(self, scope: str | None) -> str:
        """All registered scopes when none is asked for; never more than the registered ones.

        The code flow ignores unknown scopes (OpenID Connect Core, 3.1.2.1) and needs `openid`.
        """
        registered: list[str] = self.row["scope"].split(" ")
        wanted = scope.split(" ") if scope else registered
        known = bool(self.redirect_uris) or set(wanted) <= set(registered)
        if len(scope or "") > _MAX_SCOPE or not known or (self.redirect_uris and OPENID not in wanted):
            raise InvalidScopeError
        return " ".join(name for name in registered if name in wanted)


@dataclass(frozen=True)
class Redemption:
    """Authlib's "user" of the token that a code gives."""

    grant: Grant
    jti: str


class ProviderServer(AuthorizationServer):  # type: ignore[misc]  # Authlib carries no types
    """Authlib's server over one database session. `register_grant` is called by who knows the grants."""

    def __init__(
        self,
        connection: Connection,
        *,
        hasher: SecretHasher,
        tokens: Tokens,
        sessions: Sessions,
        now: float,
    ) -> None:
        super().__init__()
        self.connection = connection
        self.tokens = tokens
        self.sessions = sessions
        self.now = now
        self._hasher = hasher
        self._proven: str | None = None
        self.register_client_auth_method("client_secret_basic", self._by_basic)
        self.register_client_auth_method("client_secret_post", self._by_post)
        # A1: our own lifetimes; A8: the signer sees exactly one key, in Tokens.mint.
        self.register_token_generator(
            "default", BearerTokenGenerator(self._access_token, expires_generator=self._expires)
        )

    def answer(self, form: TokenForm) -> TokenAnswer:
        """The token response for a parsed form. Raises nothing a client can cause."""
        answer = self.create_token_response(form)
        assert isinstance(answer, TokenAnswer)
        return answer

    def prove(self, form: TokenForm, *, endpoint: str) -> Client | TokenAnswer:
        """The client that proves itself at another endpoint, or the answer to who does not."""
        request = self.create_oauth2_request(form)
        try:
            client = self.authenticate_client(request, METHODS, endpoint)
        except OAuth2Error as error:
            refusal = self.handle_error_response(request, error)
            assert isinstance(refusal, TokenAnswer)
            return refusal
        assert isinstance(client, Client)
        return client

    # What Authlib asks of a framework

    def create_oauth2_request(self, request: TokenForm | OAuth2Request) -> OAuth2Request:
        return request if isinstance(request, OAuth2Request) else _Request(request)

    def query_client(self, client_id: str) -> Client | None:
        row = find(self.connection, client_id)
        return None if row is None else Client(row)

    def save_token(self, token: dict[str, object], request: OAuth2Request) -> None:
        """Tokens are not stored; `last_used_at` is written by the caller from the answer's client."""

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> TokenAnswer:
        fixed = {"Cache-Control": "no-store", "Pragma": "no-cache"}
        return TokenAnswer(status, dict(body or {}), {**dict(headers), **fixed}, self._proven)

    def send_signal(self, name: str, *args: object, **kwargs: object) -> None:
        """No listeners: proven clients and failures are recorded by the caller, in its transaction."""

    # Client methods: one path, one message, one status (A3); bad Basic is the ordinary 401 (A4)

    def _by_basic(self, _query_client: object, request: _Request) -> Client | None:
        header = request.headers.get("Authorization")
        if header is None:
            return None
        posted = request.form
        credentials = _basic(header)
        if credentials is None:
            _refuse()
        client_id, secret = credentials
        if "client_secret" in posted or posted.get("client_id", client_id) != client_id:
            raise InvalidRequestError("Use one way of client authentication, not two.")
        return self._prove(client_id, secret)

    def _by_post(self, _query_client: object, request: _Request) -> Client:
        """Also a public client, which has no secret: its code flow is proven by PKCE."""
        posted = request.form
        return self._prove(posted.get("client_id", ""), posted.get("client_secret"))

    def _prove(self, client_id: str, secret: str | None) -> Client:
        client = self.query_client(client_id)
        proven = self._hasher.proves(client.row if client else None, secret or "", now=self.now)
        if client is not None and client.row["public"] and not client.row["disabled"]:
            proven = secret is None
        if not proven or client is None:
            _refuse()
        if not client.row["public"]:  # a public one has only named itself so far
            self.note_proven(client)
        return client

    def note_proven(self, client: Client) -> None:
        """This request is this client's, by a secret or by a code."""
        self._proven = client.id

    def _access_token(
        self,
        client: Client,
        grant_type: str,  # noqa: ARG002 - Authlib's name
        user: Redemption | None,
        scope: str,
    ) -> str:
        grant, jti = (None, None) if user is None else (user.grant, user.jti)
        return self.tokens.mint(
            self.connection, client_id=client.id, scope=scope, cv=client.row["cv"], jti=jti, grant=grant
        )

    def _expires(self, client: Client, _grant_type: str) -> int:
        return lifetime(client.row["scope"])


def _refuse() -> NoReturn:
    raise InvalidClientError(_DESCRIPTION, status_code=401)


def _basic(header: str | None) -> tuple[str, str] | None:
    """User and password of a Basic header, percent-decoded (RFC 6749, 2.3.1); None when it is not one."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
        client_id, colon, secret = text.partition(":")
        return (
            (unquote_plus(client_id, errors="strict"), unquote_plus(secret, errors="strict"))
            if colon
            else None
        )
    except ValueError:  # not base64, not UTF-8
        return None
