"""Every error as problem+json (RFC 9457) with a stable `code`, or as a page for people: no traceback, no echo
of the input.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from bithaul.coordinator.identity.throttle import TooManyAttempts
from bithaul.errors import BithaulError, Forbidden, Unauthorized, Unavailable
from bithaul.exchange.messages import Problem

MEDIA_TYPE = "application/problem+json"
Page = Callable[[int, str, str], Response]
Personal = Callable[[Scope, int, str, str], Awaitable[Response | None]]
THINGS = {"task": "task", "worker": "worker", "version": "version", "key": "key", "seeding": "batch of tasks"}
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}


class TooManyRequests(TooManyAttempts):
    """One worker asks for more than any needs."""

    code = "too_many_requests"
    said = "Too many requests of this worker in a minute"


class BadRequest(BithaulError):
    code = "bad_request"
    http_status = 400


class LengthRequired(BithaulError):
    code = "length_required"
    http_status = 411


class UnsupportedMediaType(BithaulError):
    code = "unsupported_media_type"
    http_status = 415


class RangeNotSatisfiable(BithaulError):
    """No part of the requested range exists; `size` goes into Content-Range."""

    code = "range_not_satisfiable"
    http_status = 416

    def __init__(self, size: int) -> None:
        super().__init__(f"None of the requested ranges lies within the {size} bytes of this file.")
        self.size = size


def problem(
    status: int, detail: str, *, code: str, headers: dict[str, str] | None = None, **extra: str
) -> JSONResponse:
    """A problem+json response. `extra` members are allowed by RFC 9457 (for example `request_id`)."""
    known = status in set(HTTPStatus)  # tus has a status of its own
    title = HTTPStatus(status).phrase if known else code.replace("_", " ").capitalize()
    body = Problem(title=title, status=status, detail=detail, code=code).model_dump() | extra
    return JSONResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


@dataclass(frozen=True)
class _Said:
    """What an answer to an error says, before it is problem+json or a page."""

    status: int
    detail: str
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)
    is_defect: bool = False
    """Then the body carries the request's id too."""


class Answers:
    """How errors are answered: as problem+json, or as a `page` to whoever asks for HTML, a person's browser.

    `page` makes one of the status, what happened and the request's id. `personal` may have a better one for
    whoever asks, of the request, the status, what happened and the code; it looks up who that is.
    """

    def __init__(self, page: Page | None = None, personal: Personal | None = None) -> None:
        self._page = page
        self._personal = personal

    def install(self, app: FastAPI) -> None:
        """Register the handlers for our errors, validation errors, the framework's errors and defects."""
        app.add_exception_handler(BithaulError, self._on_error)
        app.add_exception_handler(RequestValidationError, self._on_invalid)
        app.add_exception_handler(HTTPException, self._on_http)
        app.add_exception_handler(Exception, self._on_defect)

    def of(self, scope: Scope, error: BithaulError) -> Response:
        """The answer to one of the project's errors, at once: nobody is looked up."""
        return self._bare(scope, _said_of(error))

    async def told(self, scope: Scope, error: BithaulError) -> Response:
        """The answer to one of the project's errors, for whoever asks."""
        return await self._answer(scope, _said_of(error))

    async def _answer(self, scope: Scope, said: _Said) -> Response:
        if self._personal is not None and said.status < 500 and wants_page(Headers(scope=scope)):
            page = await self._personal(scope, said.status, said.detail, said.code)
            if page is not None:
                if page.status_code == said.status:
                    page.headers.update(said.headers)
                return page
        return self._bare(scope, said)

    def _bare(self, scope: Scope, said: _Said) -> Response:
        request_id = str(scope.get("bithaul.request_id", ""))
        if self._page is None or not wants_page(Headers(scope=scope)):
            extra = {"request_id": request_id} if said.is_defect else {}
            return problem(said.status, said.detail, code=said.code, headers=dict(said.headers), **extra)
        page = self._page(said.status, said.detail, request_id)
        page.headers.update(said.headers)
        return page

    async def _on_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, BithaulError)
        return await self.told(request.scope, error)

    async def _on_invalid(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return await self._answer(request.scope, _said_of_invalid(request, error.errors()[0]))

    async def _on_http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status, detail = error.status_code, str(error.detail)
        if status in {404, 405}:
            detail = f"There is no {request.method} for this address."
            if wants_page(request.headers) and (status == 404 or request.method == "GET"):
                detail = "There is no page at this address. It may have moved, or a letter is missing."
        said = _Said(status, detail, code=_CODES.get(status, "http_error"), headers=error.headers or {})
        return await self._answer(request.scope, said)

    async def _on_defect(self, request: Request, _: Exception) -> Response:
        detail = "The coordinator failed on this request; its log has the reason under this request id."
        return self._bare(request.scope, _Said(500, detail, code="internal_error", is_defect=True))


def _said_of(error: BithaulError) -> _Said:
    return _Said(error.http_status, error.message, error.error_code, headers=headers_of(error))


def _said_of_invalid(request: Request, first: dict[str, Any]) -> _Said:
    """Of the first thing that is wrong with a request, as pydantic says it."""
    if first["type"] == "json_invalid":
        return _Said(400, "The body is not valid JSON.", code="malformed_json")
    is_page = not getattr(request.scope.get("route"), "include_in_schema", True)
    if is_page and first["loc"][0] in ("path", "query") and wants_page(request.headers):
        return _Said(404, _no_page(first["loc"]), code="not_found")
    where = ".".join(str(part) for part in first["loc"])[:200]
    return _Said(422, f"{where}: {first['msg']}"[:400], code="invalid_request")


def _no_page(where: Sequence[int | str]) -> str:
    """For a person who asks for something whose name or number cannot be."""
    thing = THINGS.get(str(where[1])) if where[0] == "path" and len(where) > 1 else None
    return f"There is no such {thing}." if thing else "That address is not one of this site's."


def wants_page(headers: Headers) -> bool:
    """Browsers name HTML when a person goes to an address; scripts and workers do not."""
    return any("text/html" in value.lower() for value in headers.getlist("accept"))


def headers_of(error: BithaulError) -> dict[str, str]:
    """What an answer to this error carries beside its body."""
    match error:
        case Unauthorized():
            return {"WWW-Authenticate": 'Bearer realm="bithaul", error="invalid_token"'}
        case Forbidden():
            return {"WWW-Authenticate": 'Bearer realm="bithaul", error="insufficient_scope"'}
        case RangeNotSatisfiable():
            return {"Content-Range": f"bytes */{error.size}"}
        case TooManyAttempts():
            return {"Retry-After": str(error.retry_after)}
        case Unavailable():
            return {"Retry-After": "5"}
        case _:
            return {}
