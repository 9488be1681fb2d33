"""The identity provider of one coordinator: tokens, codes, sign-in, revocation, metadata.

Everything here is synchronous and is called in the thread pool. Every address it publishes comes from
`settings.base_url`; no request can steer it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, update

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity import authorize, codes, inspection, people
from bithaul.coordinator.identity.adapter import (
    AUTHORIZATION_CODE,
    METHODS,
    ProviderServer,
    TokenAnswer,
    TokenForm,
)
from bithaul.coordinator.identity.apps import ensure_admin_site
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import ADMIN_SITE, SecretHasher
from bithaul.coordinator.identity.emergency import passwords_open_until
from bithaul.coordinator.identity.foreign import ForeignProvider
from bithaul.coordinator.identity.grants import GRANTS, provider_server
from bithaul.coordinator.identity.keys import SigningKeys
from bithaul.coordinator.identity.logout import Logout, plan_logout
from bithaul.coordinator.identity.passwords import PasswordThreads
from bithaul.coordinator.identity.sessions import Session, Sessions
from bithaul.coordinator.identity.tables import clients
from bithaul.coordinator.identity.throttle import Limits, Pace, Throttle, TooManyAttempts
from bithaul.coordinator.identity.tokens import InvalidToken, Principal, Tokens, at_hash
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE

TOKEN_PATH: Final = "/connect/token"  # noqa: S105 - a path, not a secret
USERINFO_PATH: Final = "/connect/userinfo"
REVOKE_PATH: Final = "/connect/revoke"
INTROSPECT_PATH: Final = "/connect/introspect"
END_SESSION_PATH: Final = "/connect/endsession"
JWKS_PATH: Final = "/.well-known/jwks.json"


class Identity:
    """Opens (and on first start creates) pepper and signing keys; keeps no other state than throttling."""

    def __init__(self, c: Coordinator, *, limits: Limits) -> None:
        self._c = c
        self._hasher = SecretHasher.of(c)
        self.keys = SigningKeys(c)
        self.sessions = Sessions(c)
        self.password_threads = PasswordThreads()
        self.foreign = ForeignProvider(c) if c.settings.oidc_issuer else None
        self.sign_in_throttle = Throttle(c, "sign-in", limits=limits, guessable=True)
        self.sign_in_pace = Pace(per_minute=limits.per_address * 10)
        self.password_throttle = Throttle(c, "password", limits=limits, guessable=True)
        self._tokens = Tokens(c, self.keys, self.sessions)
        self._token_throttle = Throttle(c, "token", limits=limits)
        self._revoke_throttle = Throttle(c, "revoke", limits=limits)
        self._introspect_throttle = Throttle(c, "introspect", limits=limits)
        ensure_admin_site(c)
        self.sessions.end_others()

    @property
    def passwords_count(self) -> bool:
        """Whether people may sign in by password: no foreign provider, or the machine lets them."""
        return self.foreign is None or passwords_open_until(self._c) is not None

    def token(self, form: TokenForm, *, address: str) -> TokenAnswer:
        """Answer a token request, or raise `TooManyAttempts`, as `revoke` and `introspect` do.

        The writer is touched only for a code that exists, on success, or on a counted failure.
        """
        opened = self._c.database.read
        if form.fields.get("grant_type") == AUTHORIZATION_CODE:
            with self._c.database.read() as connection:
                exists = codes.exists(connection, form.fields.get("code", ""), now=self._c.clock.now())
            if exists:
                opened = self._c.database.write  # it is used up in the transaction that answers
        with opened() as connection:
            answer = self._server(connection).answer(form)
        return self._counted(answer, form, self._token_throttle, address)

    def revoke(self, form: TokenForm, *, address: str) -> TokenAnswer:
        """Deny one of the client's own tokens; an unknown one is answered alike."""
        with self._c.database.read() as connection:
            answer, principal = inspection.revocable(self._server(connection), form)
        if principal is not None:
            now = self._c.clock.now()
            with self._c.database.write() as connection:
                self._tokens.deny(connection, jti=principal.jti, expires_at=principal.expires_at)
                actor = principal.client_id
                record(connection, now, actor=actor, action="token.revoke", subject=principal.subject)
        return self._counted(answer, form, self._revoke_throttle, address)

    def introspect(self, form: TokenForm, *, address: str) -> TokenAnswer:
        with self._c.database.read() as connection:
            server = self._server(connection)
            answer = inspection.introspect(server, form, issuer=self._c.settings.base_url)
        return self._counted(answer, form, self._introspect_throttle, address)

    def principal(self, token: str, *, connection: Connection | None = None) -> Principal:
        """Who a bearer token speaks for, or InvalidToken. `connection`: as its transaction sees it."""
        return self._tokens.verify(token, connection=connection)

    def userinfo(self, token: str) -> dict[str, object]:
        """The claims about the person of a token of the code flow. Raises InvalidToken."""
        principal = self._tokens.verify(token)
        if principal.sid is None or "openid" not in principal.scopes:
            raise InvalidToken
        claims: dict[str, object] = {"sub": principal.subject}
        if "profile" in principal.scopes:
            with self._c.database.read() as connection:
                found = people.find_by_id(connection, principal.subject)
            if found is None:
                raise InvalidToken
            person = found[0]
            claims |= {"name": person.name, "preferred_username": person.name}
        return claims

    def authorize(
        self, fields: Mapping[str, str], session: Session | None
    ) -> authorize.Redirect | authorize.Refused | authorize.SignInFirst:
        """Answer an authorization request; a code is stored before its address is returned."""
        issuer = self._c.settings.base_url
        with self._c.database.read() as connection:
            decided = authorize.decide(self._server(connection), fields, session, issuer=issuer)
        if not isinstance(decided, authorize.Ready):
            return decided
        assert session is not None
        with self._c.database.write() as connection:
            server = self._server(connection)
            decided = authorize.decide(server, fields, session, issuer=issuer)
            if isinstance(decided, authorize.Ready):
                return authorize.grant_code(server, decided, session, issuer=issuer)
        return decided

    def client_origin(self, fields: Mapping[str, str]) -> str:
        """Where a valid authorization request will send the browser; empty for any other."""
        with self._c.database.read() as connection:
            return authorize.client_origin(self._server(connection), fields)

    def accept_admin(self, id_token: str, access_token: str, *, nonce: str, sid: str | None) -> str:
        """The admin site's check of its ID token; the session's new cookie. Raises InvalidToken.

        `sid`: the session of the browser that brings the answer. It must be the one that asked.
        """
        claims = self._tokens.read_id_token(id_token)
        good = (
            claims["aud"] == ADMIN_SITE,
            claims.get("nonce") == nonce,
            claims["sid"] == sid,
            claims.get("at_hash") == at_hash(access_token),
            isinstance(claims.get("exp"), int) and self._c.clock.now() < claims["exp"],
        )
        if not all(good) or sid is None:
            raise InvalidToken
        now = self._c.clock.now()
        with self._c.database.write() as connection:
            session = self.sessions.alive(connection, sid)
            if session is None:
                raise InvalidToken
            record(connection, now, actor=session.name, action="sign-in.admin", subject=session.name)
            return self.sessions.renew(connection, sid, admin=True)

    def plan_logout(self, fields: Mapping[str, str], session: Session | None) -> Logout:
        with self._c.database.read() as connection:
            return plan_logout(connection, self._tokens, fields, session)

    def metadata(self) -> dict[str, object]:
        """Discovery (RFC 8414 and OpenID Connect): only what exists is announced."""
        issuer = self._c.settings.base_url
        return {
            "issuer": issuer,
            "authorization_endpoint": issuer + authorize.AUTHORIZE_PATH,
            "token_endpoint": issuer + TOKEN_PATH,
            "userinfo_endpoint": issuer + USERINFO_PATH,
            "revocation_endpoint": issuer + REVOKE_PATH,
            "introspection_endpoint": issuer + INTROSPECT_PATH,
            "end_session_endpoint": issuer + END_SESSION_PATH,
            "jwks_uri": issuer + JWKS_PATH,
            "scopes_supported": [WORKER_SCOPE, ADMIN_SCOPE, "openid", "profile"],
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": GRANTS,
            "token_endpoint_auth_methods_supported": [*METHODS, "none"],
            "revocation_endpoint_auth_methods_supported": [*METHODS, "none"],
            "introspection_endpoint_auth_methods_supported": METHODS,
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "prompt_values_supported": ["none", "login", "consent", "select_account"],
            "claims_supported": [
                *("iss", "sub", "aud", "iat", "exp", "auth_time", "nonce", "at_hash", "sid"),
                *("name", "preferred_username"),
            ],
            "claims_parameter_supported": False,
            "request_parameter_supported": False,
            "request_uri_parameter_supported": False,
        }

    def _server(self, connection: Connection) -> ProviderServer:
        return provider_server(
            connection,
            hasher=self._hasher,
            tokens=self._tokens,
            sessions=self.sessions,
            now=self._c.clock.now(),
        )

    def _counted(self, answer: TokenAnswer, form: TokenForm, throttle: Throttle, address: str) -> TokenAnswer:
        if answer.failed_authentication:
            retry_after = throttle.failed(form.claimed_client(), address)
            if retry_after is not None:
                raise TooManyAttempts(retry_after)
            return answer
        if answer.status == 200 and answer.client_id is not None:
            used = {"last_used_at": self._c.clock.now(), "last_used_from": address[:64]}
            with self._c.database.write() as connection:
                connection.execute(update(clients).where(clients.c.id == answer.client_id).values(used))
        return answer
