"""Endpoints of the identity provider that programs call: token, userinfo, revoke, introspect, discovery.

Those a browser is sent to, authorize and endsession, are pages: `coordinator/site`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.forms import FORM, read_form
from bithaul.coordinator.api.guard import bearer
from bithaul.coordinator.api.openapi import PROBLEM
from bithaul.coordinator.api.peer import Peers
from bithaul.coordinator.api.problems import BadRequest
from bithaul.coordinator.identity.adapter import TokenAnswer, TokenForm
from bithaul.coordinator.identity.provider import (
    INTROSPECT_PATH,
    JWKS_PATH,
    REVOKE_PATH,
    TOKEN_PATH,
    USERINFO_PATH,
    Identity,
)
from bithaul.coordinator.identity.tokens import InvalidToken

_METADATA_CACHE = {"cache-control": "public, max-age=300"}
_CLIENT_FIELDS = ("client_id", "client_secret")
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "error_description": {"type": "string"}},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An OAuth error (RFC 6749, 5.2), or a problem with a stable code before there is one",
        "content": {"application/json": {"schema": _ERROR}, **PROBLEM["content"]},
    }
}


def openid_routes(identity: Identity, peers: Peers) -> APIRouter:
    router = APIRouter(tags=["identity"])

    async def answer(request: Request, call: Callable[..., TokenAnswer]) -> JSONResponse:
        authorization = request.headers.getlist("authorization")
        if len(authorization) > 1:
            raise BadRequest("Send one Authorization header.", code="invalid_request")
        fields = await read_form(request)
        form = TokenForm(fields=fields, authorization=authorization[0] if authorization else None)
        result = await run_in_threadpool(call, form, address=peers.address_of(request))
        return JSONResponse(result.body, status_code=result.status, headers=result.headers)

    fields = ("scope", "code", "redirect_uri", "code_verifier", *_CLIENT_FIELDS)

    @router.post(TOKEN_PATH, responses=_ERRORS, openapi_extra=_form("grant_type", *fields))
    async def token(request: Request) -> JSONResponse:
        """OAuth 2: a secret, or an authorization code with its verifier, for a token."""
        return await answer(request, identity.token)

    @router.post(REVOKE_PATH, responses=_ERRORS, openapi_extra=_form("token", *_CLIENT_FIELDS))
    async def revoke(request: Request) -> JSONResponse:
        """Refuse one of the client's own tokens from now on (RFC 7009)."""
        return await answer(request, identity.revoke)

    @router.post(INTROSPECT_PATH, responses=_ERRORS, openapi_extra=_form("token", *_CLIENT_FIELDS))
    async def introspect(request: Request) -> JSONResponse:
        """What an access token says, for clients with the admin scope (RFC 7662)."""
        return await answer(request, identity.introspect)

    @router.get(USERINFO_PATH)
    async def userinfo(request: Request) -> JSONResponse:
        """Who is signed in, for a token of the code flow in the Authorization header."""
        return JSONResponse(await run_in_threadpool(identity.userinfo, bearer(request)))

    @router.post(USERINFO_PATH, openapi_extra=_form("access_token"))
    async def userinfo_by_form(request: Request) -> JSONResponse:
        """The same; the token may be in the form, here and nowhere else."""
        if "authorization" in request.headers:
            return JSONResponse(await run_in_threadpool(identity.userinfo, bearer(request)))
        fields = await read_form(request)
        if "access_token" not in fields:
            raise InvalidToken
        return JSONResponse(await run_in_threadpool(identity.userinfo, fields["access_token"]))

    @router.get(JWKS_PATH)
    def jwks() -> JSONResponse:
        """Public signing keys."""
        return JSONResponse(identity.keys.jwks(), headers=_METADATA_CACHE)

    @router.get("/.well-known/oauth-authorization-server")
    def oauth_metadata() -> Response:
        """What this provider offers (RFC 8414)."""
        return JSONResponse(identity.metadata(), headers=_METADATA_CACHE)

    @router.get("/.well-known/openid-configuration")
    def openid_configuration() -> Response:
        """The same (OpenID Connect Discovery)."""
        return JSONResponse(identity.metadata(), headers=_METADATA_CACHE)

    return router


def _form(required: str, *optional: str) -> dict[str, Any]:
    """What OpenAPI says of a form."""
    properties = {name: {"type": "string"} for name in (required, *optional)}
    schema = {"type": "object", "required": [required], "properties": properties}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema}}}}
