"""The identity provider of one coordinator: answers token requests, proves bearer tokens, publishes metadata.

Everything here is synchronous and is called in the thread pool. Every address it publishes comes from
`settings.base_url`; no request can steer it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import update

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.adapter import METHODS, TokenAnswer, TokenForm, TokenServer
from bithaul.coordinator.identity.clients import SecretHasher
from bithaul.coordinator.identity.keys import SigningKeys
from bithaul.coordinator.identity.tables import clients
from bithaul.coordinator.identity.throttle import Limits, Throttle
from bithaul.coordinator.identity.tokens import Principal, Tokens
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE

TOKEN_PATH = "/connect/token"  # noqa: S105 - a path, not a secret
JWKS_PATH = "/.well-known/jwks.json"


@dataclass(frozen=True)
class Throttled:
    """Too many failed attempts: answer 429 with this Retry-After."""

    retry_after: int


class Identity:
    """Opens (and on first start creates) pepper and signing keys; keeps no other state than throttling."""

    def __init__(self, c: Coordinator, *, limits: Limits) -> None:
        self._c = c
        self._hasher = SecretHasher.of(c)
        self.keys = SigningKeys(c)
        self._tokens = Tokens(c, self.keys)
        self._throttle = Throttle(c, "token", limits=limits)

    def token(self, form: TokenForm, *, address: str) -> TokenAnswer | Throttled:
        """Answer a token request. The writer is touched only on success or on a counted failure."""
        now = self._c.clock.now()
        with self._c.database.read() as connection:
            server = TokenServer(connection, hasher=self._hasher, tokens=self._tokens, now=now)
            answer = server.answer(form)
        if answer.failed_authentication:
            retry_after = self._throttle.failed(form.claimed_client(), address)
            return answer if retry_after is None else Throttled(retry_after)
        if answer.status == 200:
            with self._c.database.write() as connection:
                used = update(clients).where(clients.c.id == answer.client_id).values(last_used_at=now)
                connection.execute(used)
        return answer

    def principal(self, token: str) -> Principal:
        """Who a bearer token speaks for, or InvalidToken."""
        return self._tokens.verify(token)

    def metadata(self) -> dict[str, object]:
        """Discovery: only what exists is announced."""
        issuer = self._c.settings.base_url
        return {
            "issuer": issuer,
            "token_endpoint": issuer + TOKEN_PATH,
            "jwks_uri": issuer + JWKS_PATH,
            "scopes_supported": [WORKER_SCOPE, ADMIN_SCOPE],
            "response_types_supported": [],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": METHODS,
        }
