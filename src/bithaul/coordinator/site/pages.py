"""Server-rendered pages: Jinja2 with escaping on, a strict content security policy, no script needed.

A `SiteRoute` turns the project's errors into pages. Addresses to go on to are paths of this site or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi.routing import APIRoute
from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from bithaul.coordinator.api.problems import headers_of
from bithaul.coordinator.identity.transport import is_plain_http
from bithaul.coordinator.settings import Settings
from bithaul.errors import BithaulError

HOME = "/account"
SELF = "'self'"
_PATH = re.compile(r"/(?![/\\])[!#-\[\]-~]*")  # printable ASCII but space, quote and backslash; not //host

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


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

    def compile_templates(self) -> None:
        """All of them, which the first visitors would otherwise wait for."""
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    def show(
        self, template: str, *, status: int = 200, form_action: str = "", **values: object
    ) -> HTMLResponse:
        text = self._environment.get_template(template).render(plain_http=self._plain_http, **values)
        headers = {"content-security-policy": content_security_policy(form_action)}
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
        values = {"request_id": "", **extra}
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
        title = HTTPStatus(status).phrase if status in set(HTTPStatus) else "That did not work"
        return self.message(
            title, detail, status=status, link="/", link_text="To the dashboard", request_id=request_id
        )

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
                        request_id = str(request.scope.get("bithaul.request_id", ""))
                        page = pages.problem(error.http_status, error.message, request_id)
                        page.headers.update(headers_of(error))
                        return page

                return shown

        return SiteRoute
