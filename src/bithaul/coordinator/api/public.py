"""Routes without a token: health, status, the token endpoint, discovery and JWKS."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.api.guard import read_body
from bithaul.coordinator.api.problems import BadRequest, Throttled, UnsupportedMediaType
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity import provider
from bithaul.coordinator.identity.adapter import TokenForm
from bithaul.coordinator.identity.provider import JWKS_PATH, TOKEN_PATH, Identity
from bithaul.coordinator.queries.health import HealthView, health
from bithaul.coordinator.queries.status import StatusView, status

MAX_FORM_BYTES = 16 * 1024
MAX_FORM_FIELDS = 32
HEALTH_SECONDS = 1.0
_FORM_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["grant_type"],
                    "properties": {
                        name: {"type": "string"}
                        for name in ("grant_type", "client_id", "client_secret", "scope")
                    },
                }
            }
        },
    }
}
_METADATA_CACHE = {"cache-control": "public, max-age=300"}


def public_routes(c: Coordinator, identity: Identity) -> APIRouter:
    router = APIRouter()

    recent = _RecentHealth(c)

    @router.get("/health", tags=["public"], responses={503: {"model": HealthView}})
    async def check_health() -> JSONResponse:
        """Liveness and readiness that really check, at most once a second."""
        view = await recent.view()
        return JSONResponse(view.model_dump(mode="json"), status_code=200 if view.ok else 503)

    @router.get("/status", tags=["public"])
    def public_status() -> StatusView:
        """Counts, no names."""
        return status(c)

    @router.post(TOKEN_PATH, tags=["identity"], openapi_extra=_FORM_SCHEMA)
    async def token(request: Request) -> JSONResponse:
        """OAuth 2 client credentials: a secret for a token."""
        form = await _read_form(request)
        address = request.client.host if request.client else "unknown"
        answer = await run_in_threadpool(identity.token, form, address=address)
        if isinstance(answer, provider.Throttled):
            raise Throttled(answer.retry_after)
        return JSONResponse(answer.body, status_code=answer.status, headers=answer.headers)

    @router.get(JWKS_PATH, tags=["identity"])
    def jwks() -> JSONResponse:
        """Public signing keys."""
        return JSONResponse(identity.keys.jwks(), headers=_METADATA_CACHE)

    @router.get("/.well-known/oauth-authorization-server", tags=["identity"])
    def metadata() -> Response:
        """What this provider offers (RFC 8414)."""
        return JSONResponse(identity.metadata(), headers=_METADATA_CACHE)

    return router


class _RecentHealth:
    """Everyone may ask for health and each check writes to disk, so askers share one result a second."""

    def __init__(self, c: Coordinator) -> None:
        self._c = c
        self._lock = asyncio.Lock()
        self._view: HealthView | None = None
        self._at = 0.0

    async def view(self) -> HealthView:
        async with self._lock:  # waiting here takes no thread
            now = self._c.clock.monotonic()
            if self._view is None or now - self._at >= HEALTH_SECONDS:
                self._view = await run_in_threadpool(health, self._c)
                self._at = now
            return self._view


async def _read_form(request: Request) -> TokenForm:
    """The form of a token request: at most 16 KiB, urlencoded, no field twice, nothing in the query."""
    if request.scope["query_string"]:
        raise BadRequest("Send the parameters in the body, not in the address.", code="invalid_request")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("Send the parameters as application/x-www-form-urlencoded.")
    authorization = request.headers.getlist("authorization")
    if len(authorization) > 1:
        raise BadRequest("Send one Authorization header.", code="invalid_request")
    body = await read_body(request, limit=MAX_FORM_BYTES)
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS
        )
    except ValueError as error:  # not ASCII, not UTF-8 after decoding, or too many fields
        raise BadRequest("The form is not valid.", code="invalid_request") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadRequest("A parameter was sent twice.", code="invalid_request")
    return TokenForm(fields=fields, authorization=authorization[0] if authorization else None)
