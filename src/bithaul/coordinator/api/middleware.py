"""Pure ASGI middleware around every route: request id, Host check, no encoded bodies, safe headers,
request counts.

`BaseHTTPMiddleware` is not used: it loses context variables and buffers. Nothing here reads a body.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bithaul.coordinator.api.problems import problem
from bithaul.coordinator.settings import Settings

log = logging.getLogger(__name__)

Observe = Callable[[str, str, int, float], None]
"""(method, route template, status, seconds) of a finished request."""

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": (
        "default-src 'none'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def allowed_hosts(settings: Settings) -> frozenset[str]:
    """Host names this coordinator answers to: its public one, the address it binds, and loopback."""
    public = urlsplit(settings.base_url).hostname or ""
    names = {public, "localhost", "127.0.0.1", "::1"}
    if not _is_wildcard(settings.host):
        names.add(settings.host)
    return frozenset(name.lower() for name in names if name)


class Envelope:
    """The outermost layer: names the request, refuses foreign hosts, and closes the response with headers."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], https: bool, observe: Observe) -> None:
        self._app = app
        self._hosts = hosts
        self._https = https
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope["bithaul.request_id"] = request_id
        started = time.perf_counter()
        status = 500

        async def send_closed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("cache-control", "no-store")
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                if self._https:
                    headers.setdefault("strict-transport-security", "max-age=31536000")
            await send(message)

        try:
            headers = Headers(scope=scope)
            if host_of(headers.getlist("host")) not in self._hosts:
                detail = "This coordinator does not answer to that Host; use its public URL."
                await problem(400, detail, code="unknown_host")(scope, receive, send_closed)
            elif any(value.strip().lower() != "identity" for value in headers.getlist("content-encoding")):
                # Nothing here unpacks a body, so there is no bomb to defuse: refused before it is read.
                detail = "Send the body without Content-Encoding."
                await problem(415, detail, code="unsupported_encoding")(scope, receive, send_closed)
            else:
                await self._app(scope, receive, send_closed)
        except Exception:
            # The 500 is already sent (api.problems); raising on would cut the connection under the answer.
            log.exception("request %s failed", request_id)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._observe(scope["method"], route, status, time.perf_counter() - started)


def host_of(values: list[str]) -> str | None:
    """The host name in the one Host header, without its port; None when absent, repeated or malformed."""
    if len(values) != 1:
        return None
    try:
        parts = urlsplit(f"//{values[0]}")
        _ = parts.port  # raises on a bad port
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""
