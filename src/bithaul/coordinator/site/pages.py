"""Server-rendered pages: Jinja2 with escaping on, a strict content security policy, no script needed.

A `SiteRoute` turns the project's errors into pages. Addresses to go on to are paths of this site or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from bithaul.coordinator.api.problems import headers_of, wants_page
from bithaul.coordinator.identity.transport import is_plain_http
from bithaul.coordinator.settings import Settings
from bithaul.errors import BithaulError

HOME = "/account"
SELF = "'self'"
_PATH = re.compile(r"/(?![/\\])[!#-\[\]-~]*")  # printable ASCII but space, quote and backslash; not //host

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Personal = Callable[[Request, int, str, str], Awaitable[Response | None]]  # status, what happened, code

_TITLES = {
    400: "That did not work",
    401: "Sign in first",
    403: "Not allowed",
    404: "Not found",
    405: "Not found",
    409: "Not possible now",
    410: "Gone",
    413: "Too large",
    422: "Not possible",
    429: "Too many tries",
    503: "Busy",
    507: "No space left",
}


def title_of(status: int) -> str:
    """What went wrong, in a person's words."""
    return _TITLES.get(status, "That did not work")


def content_security_policy(form_action: str = "") -> str:
    """`form_action`: an origin, because Chromium applies the rule to redirects after a form too."""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        f"form-action {' '.join(filter(None, [SELF, form_action]))}; frame-ancestors 'none'; base-uri 'none'"
    )


def safe_next(value: str | None) -> str:
    """A path of this site to go on to; the account page for anything else."""
    return value if value is not None and len(value) <= 8192 and _PATH.fullmatch(value) else HOME


def go(location: str) -> RedirectResponse:
    """A redirect that turns a POST into a GET."""
    return RedirectResponse(location, status_code=303)


class GoTo(Exception):  # an answer, not an error
    """The visitor must go somewhere else first."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class Pages:
    def __init__(self, settings: Settings, environment: Environment) -> None:
        self._environment = environment
        self._plain_http = is_plain_http(settings.base_url)
        self.visitors: Personal | None = None  # of the site's routes

    def compile_templates(self) -> None:
        """All of them, which the first visitors would otherwise wait for."""
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    def show(
        self, template: str, *, status: int = 200, form_action: str = "", **values: object
    ) -> HTMLResponse:
        text = self._environment.get_template(template).render(plain_http=self._plain_http, **values)
        headers = {
            "content-security-policy": content_security_policy(form_action),
            # Under `no-referrer` Chromium says `Origin: null` with our own forms, and not from which page.
            "referrer-policy": "same-origin",
        }
        return HTMLResponse(text, status_code=status, headers=headers)

    def message(
        self,
        title: str,
        message: str,
        *,
        status: int = 200,
        link: str = "",
        link_text: str = "",
        **extra: str,
    ) -> HTMLResponse:
        values = {"layout": "base.html", "request_id": "", **extra}
        return self.show(
            "message.html",
            status=status,
            title=title,
            message=message,
            link=link,
            link_text=link_text,
            **values,
        )

    def problem(self, status: int, detail: str, request_id: str) -> HTMLResponse:
        """What went wrong, for a person, with a way back."""
        return self.message(
            title_of(status),
            detail,
            status=status,
            link="/",
            link_text="To the dashboard",
            request_id=request_id,
        )

    async def personal(self, scope: Scope, status: int, detail: str, code: str) -> Response | None:
        """The same for somebody who is signed in, or was; None for others."""
        return None if self.visitors is None else await self.visitors(Request(scope), status, detail, code)

    async def told(self, request: Request, error: BithaulError) -> Response:
        """The page of one of the project's errors, for whoever asks."""
        status, page = error.http_status, None
        if status < 500 and wants_page(request.headers):
            page = await self.personal(request.scope, status, error.message, error.error_code)
        if page is None:
            page = self.problem(status, error.message, str(request.scope.get("bithaul.request_id", "")))
        if page.status_code == status:
            page.headers.update(headers_of(error))
        return page

    def route_class(self) -> type[APIRoute]:
        """Routes whose expected errors are pages."""
        pages = self

        class SiteRoute(APIRoute):
            def get_route_handler(self) -> Handler:
                handle = super().get_route_handler()

                async def shown(request: Request) -> Response:
                    try:
                        return await handle(request)
                    except GoTo as answer:
                        return go(answer.location)
                    except BithaulError as error:
                        return await pages.told(request, error)

                return shown

        return SiteRoute
