"""Every error as problem+json (RFC 9457) with a stable `code`: no traceback, no echo of the input."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from bithaul.coordinator.identity.throttle import TooManyAttempts
from bithaul.errors import BithaulError, Forbidden, Unauthorized, Unavailable
from bithaul.exchange.messages import Problem

MEDIA_TYPE = "application/problem+json"
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}


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


def of_error(error: BithaulError) -> JSONResponse:
    """The answer to one of the project's errors."""
    return problem(error.http_status, error.message, code=error.error_code, headers=headers_of(error))


def install(app: FastAPI) -> None:
    """Register the handlers for our errors, validation errors, the framework's errors and defects."""
    app.add_exception_handler(BithaulError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_defect)


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


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BithaulError)
    return of_error(error)


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return problem(400, "The body is not valid JSON.", code="malformed_json")
    where = ".".join(str(part) for part in first["loc"])[:200]
    return problem(422, f"{where}: {first['msg']}"[:400], code="invalid_request")


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = error.status_code
    detail = f"There is no {request.method} for this address." if status in {404, 405} else str(error.detail)
    headers = dict(error.headers) if error.headers else None
    return problem(status, detail, code=_CODES.get(status, "http_error"), headers=headers)


async def _on_defect(request: Request, _: Exception) -> JSONResponse:
    request_id = str(request.scope.get("bithaul.request_id", ""))
    detail = "The coordinator failed on this request; its log has the reason under this request id."
    return problem(500, detail, code="internal_error", request_id=request_id)
