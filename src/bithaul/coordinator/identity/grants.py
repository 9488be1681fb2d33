"""The two grants: client_credentials for machines, the authorization code for people in browsers.

Codes are stored, redeemed and replaced by `codes`, PKCE is `pkce`. Authlib's own descriptions repeat what was
sent and raise on odd letters, so every refusal here has words of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from authlib.oauth2.rfc6749 import InvalidRequestError, OAuth2Request
from authlib.oauth2.rfc6749.errors import (
    InvalidClientError,
    InvalidGrantError,
    OAuth2Error,
)
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, ClientCredentialsGrant
from sqlalchemy import Connection, delete

from bithaul.coordinator.identity import codes
from bithaul.coordinator.identity.adapter import (
    AUTHORIZATION_CODE,
    CLIENT_CREDENTIALS,
    METHODS,
    OPENID,
    Client,
    ProviderServer,
    Redemption,
)
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import SecretHasher
from bithaul.coordinator.identity.codes import Code, CodeRequest
from bithaul.coordinator.identity.pkce import check_verifier, read_challenge
from bithaul.coordinator.identity.sessions import Session, Sessions
from bithaul.coordinator.identity.tables import sessions as session_rows
from bithaul.coordinator.identity.tokens import Grant, Tokens, lifetime

GRANTS: Final = [AUTHORIZATION_CODE, CLIENT_CREDENTIALS]
_NOT_SUPPORTED: Final = {
    "request": "request_not_supported",
    "request_uri": "request_uri_not_supported",
    "registration": "registration_not_supported",
}
_MAX_NONCE: Final = 512


def provider_server(
    connection: Connection, *, hasher: SecretHasher, tokens: Tokens, sessions: Sessions, now: float
) -> ProviderServer:
    """A server with all grants, for one request."""
    server = ProviderServer(connection, hasher=hasher, tokens=tokens, sessions=sessions, now=now)
    server.register_grant(_ClientCredentials)
    server.register_grant(_Code)
    server.register_grant(_AnyOtherGrant)
    return server


class _ClientCredentials(ClientCredentialsGrant):  # type: ignore[misc]  # Authlib carries no types
    TOKEN_ENDPOINT_AUTH_METHODS = METHODS


class _AnyOtherGrant(ClientCredentialsGrant):  # type: ignore[misc]  # Authlib carries no types
    """What is not offered is refused only to a proven client; all others get the one 401 (A3, SEC-01)."""

    TOKEN_ENDPOINT_AUTH_METHODS = METHODS

    @classmethod
    def check_token_endpoint(cls, request: OAuth2Request) -> bool:
        return request.payload.grant_type not in GRANTS

    def validate_token_request(self) -> NoReturn:
        self.request.client = self.authenticate_token_endpoint_client()
        if not self.request.payload.grant_type:
            raise InvalidRequestError("The parameter grant_type is missing.")
        raise OAuth2Error(f"Only {' and '.join(GRANTS)} are offered.", error="unsupported_grant_type")


class _Code(AuthorizationCodeGrant):  # type: ignore[misc]  # Authlib carries no types
    TOKEN_ENDPOINT_AUTH_METHODS = METHODS

    @classmethod
    def check_authorization_endpoint(cls, _request: OAuth2Request) -> bool:
        return True  # any other response type is refused below, once the redirect address is known

    # The authorization endpoint

    def validate_authorization_request(self) -> str:
        """The redirect address. What cannot be trusted with a redirect raises without one."""
        fields: Mapping[str, str] = self.request.payload.data
        client = self.server.query_client(fields.get("client_id", ""))
        if client is None or client.row["disabled"] or not client.redirect_uris:
            raise InvalidClientError("There is no such client.")
        redirect_uri = fields.get("redirect_uri", "")
        if redirect_uri not in client.redirect_uris:  # byte for byte
            raise InvalidRequestError("The redirect_uri is missing or not registered.")
        self.request.client = client
        try:
            self._validate_rest(client, fields)
        except OAuth2Error as error:
            error.redirect_uri = redirect_uri
            raise
        return redirect_uri

    def _validate_rest(self, client: Client, fields: Mapping[str, str]) -> None:
        for name, code in _NOT_SUPPORTED.items():
            if name in fields:
                raise OAuth2Error(error=code)
        response_type = fields.get("response_type")
        if not response_type:
            raise InvalidRequestError("The parameter response_type is missing.")
        if response_type != "code":
            raise OAuth2Error("Only response_type=code is offered.", error="unsupported_response_type")
        if fields.get("response_mode", "query") != "query":
            raise InvalidRequestError("Only response_mode=query is offered.")
        if len(fields.get("nonce", "")) > _MAX_NONCE:
            raise InvalidRequestError("The nonce is too long.")
        self.request.scope = client.get_allowed_scope(fields.get("scope"))
        self.request.challenge = read_challenge(fields, required=client.row["require_pkce"])

    def generate_authorization_code(self) -> str:
        session: Session = self.request.user
        request = CodeRequest(
            client_id=self.request.client.id,
            person_id=session.person_id,
            sid=session.sid,
            redirect_uri=self.request.payload.redirect_uri,
            scope=self.request.scope,
            nonce=self.request.payload.data.get("nonce"),
            challenge=self.request.challenge,
            auth_time=session.auth_time,
        )
        return codes.issue(self.server.connection, request, now=self.server.now)

    def save_authorization_code(self, code: str, request: OAuth2Request) -> None:
        """Stored when it was made."""

    # The token endpoint

    def validate_token_request(self) -> None:
        """A7: a used code that comes again with its right verifier has leaked; what it gave ends."""
        super().validate_token_request()
        code: Code = self.request.authorization_code
        check_verifier(self.request.form.get("code_verifier"), challenge=code.row["challenge"])
        if code.row["used_at"] is not None:
            self._end_what_it_gave(code)
            raise InvalidGrantError("The code was used already.")

    def query_authorization_code(self, code: str, client: Client) -> Code | None:
        return codes.find(self.server.connection, code, client_id=client.id, now=self.server.now)

    def authenticate_user(self, code: Code) -> Redemption | None:
        """The person of a code whose session still lives; uses the code up."""
        connection = self.server.connection
        session = self.server.sessions.alive(connection, code.row["sid"])
        if session is None or session.person_id != code.row["person_id"]:
            return None
        jti = self.server.tokens.new_jti()
        if not codes.redeem(connection, code, jti=jti, now=self.server.now):
            return None
        self.server.note_proven(self.request.client)
        return Redemption(Grant(session.person_id, session.sid, int(code.row["auth_time"])), jti)

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        status, token, headers = super().create_token_response()
        if OPENID in token["scope"].split(" "):
            token["id_token"] = self.server.tokens.mint_id_token(
                self.server.connection,
                client_id=self.request.client.id,
                grant=self.request.user.grant,
                nonce=self.request.authorization_code.row["nonce"],
                access_token=token["access_token"],
            )
        return status, token, headers

    def delete_authorization_code(self, code: Code) -> None:
        """The row stays until it expires, to see a replay."""

    def _end_what_it_gave(self, code: Code) -> None:
        row, connection = code.row, self.server.connection
        expires_at = int(row["used_at"]) + lifetime(row["scope"]) + 1
        self.server.tokens.deny(connection, jti=row["jti"], expires_at=expires_at)
        connection.execute(delete(session_rows).where(session_rows.c.sid == row["sid"]))
        record(
            connection,
            self.server.now,
            actor=row["client_id"],
            action="code.replay",
            subject=row["sid"],
            detail="the token and the session of the code were ended",
        )
