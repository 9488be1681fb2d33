"""Routes behind a token. Order: token, scope, bounded body, validation, use case.

A route class, not a dependency, because FastAPI reads and parses a body before it solves dependencies: here
nobody unproven makes us parse anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, ClassVar

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from bithaul.coordinator.api.desk import Desk
from bithaul.coordinator.api.openapi import security
from bithaul.coordinator.api.problems import BadRequest, TooManyRequests, UnsupportedMediaType
from bithaul.coordinator.identity.provider import Identity
from bithaul.coordinator.identity.throttle import Window
from bithaul.coordinator.identity.tokens import InvalidToken, Principal
from bithaul.errors import Forbidden, TooLarge
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE

MAX_JSON_BYTES = 1 << 20
MAX_JSON_DEPTH = 32
MAX_JSON_MEMBERS = 20_000  # each may become an error message, so they cost a thousand times their bytes
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}:]', re.DOTALL)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def bearer(request: Request) -> str:
    """The token of the one Authorization header; a token in the query or a cookie does nothing."""
    values = request.headers.getlist("authorization")
    if len(values) > 1:
        raise BadRequest("Send one Authorization header.", code="repeated_authorization")
    scheme, _, token = values[0].partition(" ") if values else ("", "", "")
    if scheme.lower() != "bearer":
        raise InvalidToken
    return token


async def authenticate(request: Request, scope: str) -> Principal:
    """Who calls. Raises InvalidToken (401), Forbidden (403) when the token lacks the route's scope, or
    TooManyRequests (429)."""
    identity: Identity = request.app.state.identity
    desk: Desk = request.app.state.desk
    principal = await desk.run(identity.principal, bearer(request))
    if scope not in principal.scopes:
        raise Forbidden(f"This needs a token with the scope {scope}.", code="insufficient_scope")
    if scope == WORKER_SCOPE:
        _count(request.app.state.worker_requests, principal.client_id)
    return principal


def _count(requests: Window, worker: str) -> None:
    """One worker's loop that went wild, or its thief, leaves the others their coordinator."""
    if not requests.hit(worker):
        raise TooManyRequests(requests.wait(worker) or 1)


async def read_body(request: Request, *, limit: int) -> bytes:
    """The whole body, or TooLarge as soon as `limit` is passed, before it by Content-Length."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise TooLarge(f"The body may have at most {limit} bytes.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise TooLarge(f"The body may have at most {limit} bytes.")
    return bytes(body)


class _GuardedRoute(APIRoute):
    required_scope: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        extra = kwargs.pop("openapi_extra", None) or {}
        super().__init__(*args, openapi_extra={**extra, **security(self.required_scope)}, **kwargs)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        takes_json = self.body_field is not None

        async def guarded(request: Request) -> Response:
            request.state.principal = await authenticate(request, self.required_scope)
            return await handle(await _bounded(request) if takes_json else request)

        return guarded


class WorkerRoute(_GuardedRoute):
    required_scope = WORKER_SCOPE


class AdminRoute(_GuardedRoute):
    required_scope = ADMIN_SCOPE


async def _caller(request: Request) -> Principal:
    principal = request.state.principal
    assert isinstance(principal, Principal)
    return principal


Caller = Annotated[Principal, Depends(_caller)]


async def _bounded(request: Request) -> Request:
    """The same request with its JSON body read under the caps."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Send the body as application/json.")
    body = await read_body(request, limit=MAX_JSON_BYTES)
    if depth(body) > MAX_JSON_DEPTH:
        raise BadRequest(f"The JSON is nested deeper than {MAX_JSON_DEPTH} levels.", code="json_too_deep")
    if members(body) > MAX_JSON_MEMBERS:
        raise BadRequest(f"The JSON has more than {MAX_JSON_MEMBERS} members.", code="json_too_many")

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive=replay)


def depth(body: bytes) -> int:
    """How deep brackets nest outside of strings, in linear time and without recursion."""
    if body.count(b"[") + body.count(b"{") <= MAX_JSON_DEPTH:
        return 0
    deepest = level = 0
    for match in _JSON_TOKEN.finditer(body):
        match match[0]:
            case b"[" | b"{":
                level += 1
                deepest = max(deepest, level)
            case b"]" | b"}":
                level -= 1
            case _:
                pass
    return deepest


def members(body: bytes) -> int:
    """How many members all objects have together: colons outside of strings."""
    if body.count(b":") <= MAX_JSON_MEMBERS:
        return 0
    return sum(match[0] == b":" for match in _JSON_TOKEN.finditer(body))
