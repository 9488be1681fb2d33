"""Cross-site request forgery: one ASGI middleware before every route, so that no route can forget it.

For every unsafe method that arrives with a cookie of ours: where the browser says where the request comes
from (Sec-Fetch-Site, else Origin) it must be here, **and** the token of that very cookie must be in the
form or in X-CSRF-Token. Browsers leave Sec-Fetch-* out on plain-http LAN pages and some proxies rewrite
Origin; with neither header the token alone decides.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.forms import FORM, MAX_FORM_BYTES, media_type, parse
from bithaul.coordinator.api.guard import read_body
from bithaul.coordinator.api.problems import Answers
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.errors import BithaulError, Forbidden

FIELD = "csrf_token"
HEADER = "x-csrf-token"
CODE = "csrf"  # of `_refused`
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class CsrfGuard:
    def __init__(
        self, app: ASGIApp, *, cookies: Cookies, sessions: Sessions, public_url: str, answers: Answers
    ) -> None:
        self._app = app
        self._answers = answers
        self._cookies = cookies
        self._sessions = sessions
        parts = urlsplit(public_url)
        self._origin = f"{parts.scheme}://{parts.netloc}".lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers({})
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS or not self._cookies.has(headers):
            await self._app(scope, receive, send)
            return
        try:
            if not self._comes_from_here(headers):
                raise _refused()
            token, receive = await _token(scope, receive, headers)
            if not self._is_token(headers, token):
                raise _refused()
        except BithaulError as error:
            await (await self._answers.told(scope, error))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _comes_from_here(self, headers: Headers) -> bool:
        sites, origins = headers.getlist("sec-fetch-site"), headers.getlist("origin")
        if sites:
            return sites in (["same-origin"], ["none"])
        return not origins or [origin.lower() for origin in origins] == [self._origin]

    def _is_token(self, headers: Headers, token: str | None) -> bool:
        """With a session its token counts, and only without one that of the sign-in that has begun."""
        cookie = self._cookies.read(headers, self._cookies.session)
        cookie = cookie or self._cookies.read(headers, self._cookies.sign_in)
        if cookie is None or token is None:
            return False
        return hmac.compare_digest(self._sessions.csrf(cookie).encode(), token.encode())


async def _token(scope: Scope, receive: Receive, headers: Headers) -> tuple[str | None, Receive]:
    """The token, and a `receive` that gives the body again where it had to be read."""
    given = headers.getlist(HEADER)
    if given:
        return (given[0] if len(given) == 1 else None), receive
    if media_type(headers.get("content-type", "")) != FORM:
        return None, receive
    body = await read_body(Request(scope, receive), limit=MAX_FORM_BYTES)

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return parse(body).get(FIELD), replay


def _refused() -> Forbidden:
    return Forbidden("This form is not from this site or is too old; load the page again.", code="csrf")
