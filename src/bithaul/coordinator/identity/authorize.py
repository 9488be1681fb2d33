"""The authorization endpoint: a code, an error for the client, an error for the person, or sign in first.

Every address a browser is sent to was registered byte for byte; anything else is a page without a redirect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

from authlib.common.urls import add_params_to_uri
from authlib.oauth2.rfc6749 import OAuth2Request
from authlib.oauth2.rfc6749.errors import OAuth2Error

from bithaul.coordinator.identity.adapter import ProviderServer, TokenForm
from bithaul.coordinator.identity.sessions import Session
from bithaul.coordinator.identity.tokens import InvalidToken

AUTHORIZE_PATH: Final = "/connect/authorize"
_PROMPTS: Final = frozenset({"none", "login", "consent", "select_account"})
_ASK_AGAIN: Final = frozenset({"login", "select_account"})


@dataclass(frozen=True)
class Redirect:
    """Send the browser to the client."""

    location: str


@dataclass(frozen=True)
class Refused:
    """A page for the person; no redirect."""

    message: str


@dataclass(frozen=True)
class SignInFirst:
    """Ask for the password, then come back to `resume`, a path of this site."""

    resume: str
    must_change: bool = False  # signed in, with a generated password that must be replaced first


@dataclass(frozen=True)
class Ready:
    """Nothing is in the way of a code."""

    grant: object
    request: object


def decide(
    server: ProviderServer, fields: Mapping[str, str], session: Session | None, *, issuer: str
) -> Redirect | Refused | SignInFirst | Ready:
    """What the answer is; reads only."""
    request = server.create_oauth2_request(TokenForm(fields=fields, authorization=None))
    try:
        grant = server.get_consent_grant(request, end_user=session)
        prompts = _prompts(fields)
        ask = session is None or _must_ask(server, fields, session, prompts)
        if (ask or (session and session.must_change)) and "none" in prompts:
            raise OAuth2Error(error="login_required")
    except OAuth2Error as error:
        return _refuse(error, fields, request, issuer=issuer)
    if ask:
        return SignInFirst(_resume(fields))
    assert session is not None
    if session.must_change:
        return SignInFirst(_resume(fields), must_change=True)
    return Ready(grant, request)


def grant_code(server: ProviderServer, ready: Ready, session: Session, *, issuer: str) -> Redirect:
    """Store a code over the server's own session, and the address that carries it."""
    answer = server.create_authorization_response(ready.request, grant_user=session, grant=ready.grant)
    return Redirect(_with_issuer(answer.headers["Location"], issuer))


def _must_ask(
    server: ProviderServer, fields: Mapping[str, str], session: Session, prompts: frozenset[str]
) -> bool:
    if prompts & _ASK_AGAIN:
        return True
    age = fields.get("max_age")
    if age is not None:
        if not (age.isascii() and age.isdigit() and len(age) < 10):
            raise OAuth2Error("The max_age is not a number of seconds.", error="invalid_request")
        if server.now - session.auth_time > int(age):
            return True
    hint = fields.get("id_token_hint")
    if hint is None:
        return False
    try:
        return bool(server.tokens.read_id_token(hint)["sub"] != session.person_id)
    except InvalidToken as error:
        raise OAuth2Error("The id_token_hint is not valid.", error="invalid_request") from error


def _prompts(fields: Mapping[str, str]) -> frozenset[str]:
    prompts = frozenset(fields.get("prompt", "").split())
    if not prompts <= _PROMPTS or ("none" in prompts and len(prompts) > 1):
        raise OAuth2Error("The prompt is not valid.", error="invalid_request")
    return prompts


def _resume(fields: Mapping[str, str]) -> str:
    """The same request without what the sign-in that follows will have done."""
    left = {name: value for name, value in fields.items() if name not in {"prompt", "max_age"}}
    return f"{AUTHORIZE_PATH}?{urlencode(left)}"


def _refuse(
    error: OAuth2Error, fields: Mapping[str, str], request: OAuth2Request, *, issuer: str
) -> Redirect | Refused:
    if request.client is None:  # set once the address was found to be registered
        return Refused(error.description or "The request cannot be answered.")
    error.redirect_uri, error.state = fields["redirect_uri"], fields.get("state")
    _, _, headers = error()
    return Redirect(_with_issuer(dict(headers)["Location"], issuer))


def _with_issuer(location: str, issuer: str) -> str:
    """RFC 9207: who answers is part of the answer, errors included."""
    return str(add_params_to_uri(location, {"iss": issuer}))


def client_origin(server: ProviderServer, fields: Mapping[str, str]) -> str:
    """scheme://host of the address the browser will be sent to, if it is a registered one; else empty."""
    client = server.query_client(fields.get("client_id", ""))
    address = fields.get("redirect_uri", "")
    if client is None or address not in client.redirect_uris:
        return ""
    return origin_of(address)


def origin_of(address: str) -> str:
    """scheme://host, as `form-action` of a page wants it."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"
