"""Revocation (RFC 7009) and introspection (RFC 7662) of access tokens (A11).

Another client's token is answered like an unknown one. Only clients with the admin scope may introspect.
"""

from __future__ import annotations

from typing import Final

from bithaul.coordinator.identity.adapter import Client, ProviderServer, TokenAnswer, TokenForm
from bithaul.coordinator.identity.tokens import InvalidToken, Principal, Tokens
from bithaul.exchange.messages import ADMIN_SCOPE

_NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_INACTIVE: Final[dict[str, object]] = {"active": False}


def revocable(server: ProviderServer, form: TokenForm) -> tuple[TokenAnswer, Principal | None]:
    """The answer, and whose token is to be denied, if it is the caller's own."""
    client = server.prove(form, endpoint="revocation")
    if isinstance(client, TokenAnswer):
        return client, None
    if "token" not in form.fields:
        return _bad(client), None
    principal = _read(server.tokens, form.fields["token"])
    if principal is not None and principal.client_id != client.id:
        principal = None
    proven = principal is not None or not client.row["public"]  # a public one only names itself
    return TokenAnswer(200, {}, dict(_NO_STORE), client.id if proven else None), principal


def introspect(server: ProviderServer, form: TokenForm, *, issuer: str) -> TokenAnswer:
    client = server.prove(form, endpoint="introspection")
    if isinstance(client, TokenAnswer):
        return client
    if ADMIN_SCOPE not in client.row["scope"].split(" "):
        body: dict[str, object] = {
            "error": "access_denied",
            "error_description": "This needs an admin client.",
        }
        return TokenAnswer(403, body, dict(_NO_STORE), client.id)
    if "token" not in form.fields:
        return _bad(client)
    principal = _read(server.tokens, form.fields["token"])
    body = _INACTIVE if principal is None else _describe(principal, issuer)
    return TokenAnswer(200, dict(body), dict(_NO_STORE), client.id)


def _describe(principal: Principal, issuer: str) -> dict[str, object]:
    return {
        "active": True,
        "iss": issuer,
        "token_type": "Bearer",
        "client_id": principal.client_id,
        "sub": principal.subject,
        "scope": " ".join(sorted(principal.scopes)),
        "jti": principal.jti,
        "iat": principal.issued_at,
        "exp": principal.expires_at,
    }


def _read(tokens: Tokens, token: str) -> Principal | None:
    try:
        return tokens.verify(token)
    except InvalidToken:
        return None


def _bad(client: Client) -> TokenAnswer:
    body: dict[str, object] = {
        "error": "invalid_request",
        "error_description": "The parameter token is missing.",
    }
    return TokenAnswer(400, body, dict(_NO_STORE), client.id)
