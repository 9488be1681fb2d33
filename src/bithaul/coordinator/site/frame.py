"""The frame around every page: Jinja2 with escaping on, totals strip, navigation, flash, security headers.

A page is a query that returns a frozen view model plus a template. `Frame.show` asks the door, runs the query
in a thread and renders; `Frame.act` runs a command and sends the browser back to see its result.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from bithaul import __version__
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.actions import done, newest_action
from bithaul.coordinator.queries.totals import totals
from bithaul.coordinator.site import formats
from bithaul.coordinator.site.assets import Assets
from bithaul.coordinator.site.door import Door, Person
from bithaul.errors import BithaulError

HOME = "/admin"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
NAVIGATION = (  # key, address, word, second key of its shortcut `g ...`
    ("dashboard", HOME, "Dashboard", "d"),
    ("workers", f"{HOME}/workers", "Workers", "w"),
    ("tasks", f"{HOME}/tasks", "Tasks", "t"),
    ("runs", f"{HOME}/runs", "Runs", "r"),
    ("logs", f"{HOME}/logs", "Logs", "l"),
    ("keys", f"{HOME}/keys", "Keys", "k"),
    ("install", f"{HOME}/install", "Install", "i"),
)

Build = Callable[[], Mapping[str, object]]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class Frame:
    """What every family of pages gets."""

    c: Coordinator
    door: Door
    assets: Assets
    environment: Environment
    plain_http: bool  # on a network: each page says so in red

    @classmethod
    def of(cls, c: Coordinator, door: Door) -> Frame:
        assets = Assets()
        return cls(c, door, assets, make_environment(assets), _is_readable_by_others(c.settings.base_url))

    async def show(self, request: Request, template: str, build: Build, *, status: int = 200) -> Response:
        """The page of an operator; `build` gives the template's values, in a thread."""
        person = await self.door.admin(request)
        return await run_in_threadpool(self._render, request, person, template, build, status)

    async def part(self, request: Request, template: str, build: Build) -> Response:
        """A fragment of a page, without the frame."""
        await self.door.admin(request)
        text = await run_in_threadpool(lambda: self.environment.get_template(template).render(build()))
        return _html(text, 200)

    async def data(self, request: Request, build: Callable[[], Response]) -> Response:
        """Data for a page's script, or a file to keep."""
        await self.door.admin(request)
        return await run_in_threadpool(build)

    async def act(
        self, request: Request, command: Callable[[Person], object], back: str | None = None
    ) -> Response:
        """Run a command as the operator, then back to `back`, which shows what was done."""
        person = await self.door.admin(request)
        await run_in_threadpool(command, person)
        action = await run_in_threadpool(newest_action, self.c, person.name)
        address = back or HOME
        if action is not None:
            address += ("&" if "?" in address else "?") + urlencode({"did": action})
        return RedirectResponse(address, status_code=303)

    def _render(self, request: Request, person: Person, template: str, build: Build, status: int) -> Response:
        values = build()
        asked = request.query_params.get("did", "")
        text = self.environment.get_template(template).render(
            totals=totals(self.c),
            flash=done(self.c, int(asked[:18])) if asked.isdecimal() else None,
            person=person,
            csrf_token=self.door.csrf(request),
            here=here(request),
            query=dict(request.query_params),
            plain_http=self.plain_http,
            **values,
        )
        return _html(text, status)

    def route_class(self) -> type[APIRoute]:
        """Routes whose expected errors are pages in plain words."""
        frame = self

        class PageRoute(APIRoute):
            def get_route_handler(self) -> Handler:
                handle = super().get_route_handler()

                async def shown(request: Request) -> Response:
                    try:
                        return await handle(request)
                    except BithaulError as error:
                        return frame.problem(request, error)

                return shown

        return PageRoute

    def problem(self, request: Request, error: BithaulError) -> Response:
        text = self.environment.get_template("problem.html").render(
            plain_http=self.plain_http,
            title=HTTPStatus(error.http_status).phrase,
            message=error.message,
            request_id=str(request.scope.get("bithaul.request_id", "")),
        )
        return _html(text, error.http_status)


def make_environment(assets: Assets) -> Environment:
    environment = Environment(
        loader=PackageLoader("bithaul.coordinator.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formats.FILTERS)
    environment.globals.update(
        asset=assets.address, navigation=NAVIGATION, software=__version__, with_query=with_query
    )
    return environment


def _is_readable_by_others(base_url: str) -> bool:
    parts = urlsplit(base_url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def here(request: Request) -> str:
    """This page's own path and query, as the browser asked for it."""
    query = request.scope["query_string"].decode("ascii", errors="replace")
    path: str = request.scope["path"]
    return f"{path}?{query}" if query else path


def with_query(path: str, query: Mapping[str, object], **changes: object) -> str:
    """`path` with the query changed; None and the empty text leave a name out."""
    wanted = {**query, **changes}
    pairs: Sequence[tuple[str, str]] = [
        (name, str(value)) for name, value in wanted.items() if value not in (None, "") and name != "did"
    ]
    return f"{path}?{urlencode(pairs)}" if pairs else path


def _html(text: str, status: int) -> HTMLResponse:
    return HTMLResponse(
        text, status_code=status, headers={"content-security-policy": CONTENT_SECURITY_POLICY}
    )
