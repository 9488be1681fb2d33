"""The frame around every page of an operator: who asks, totals strip, navigation, the result of an action.

A page is a query that returns a frozen view model plus a template. `Frame.show` asks who is there, runs the
query in a thread and renders; `Frame.act` runs a command and sends the browser back to see its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.sessions import Session
from bithaul.coordinator.queries.actions import NOTHING, DoneView, done, newest_action
from bithaul.coordinator.queries.totals import totals
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.pages import Pages, go
from bithaul.coordinator.site.visits import Visits

Build = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Frame:
    """What every family of pages gets."""

    c: Coordinator
    visits: Visits
    pages: Pages

    async def show(self, request: Request, template: str, build: Build) -> Response:
        """A page; `build` gives the template's values, in a thread."""
        session = await self.visits.admin(request)
        return await run_in_threadpool(lambda: self.render(request, session, template, build()))

    async def part(self, request: Request, template: str, build: Build) -> Response:
        """A fragment of a page, without the frame."""
        await self.visits.admin(request)
        return await run_in_threadpool(lambda: self.pages.show(template, **build()))

    async def data(self, request: Request, build: Callable[[], Response]) -> Response:
        """Data for a page's script, or a file to keep."""
        await self.visits.admin(request)
        return await run_in_threadpool(build)

    async def act(
        self, request: Request, command: Callable[[Session], object], *, back: str = ADMIN_HOME
    ) -> Response:
        """Run a command as the operator, then back to a page that shows what was done."""
        session = await self.visits.admin(request)

        def done_as() -> int:
            before = newest_action(self.c, session.name)
            command(session)
            after = newest_action(self.c, session.name)
            return NOTHING if after == before else after

        action = await run_in_threadpool(done_as)
        return go(f"{back}{'&' if '?' in back else '?'}did={action}")

    def render(
        self, request: Request, session: Session, template: str, values: Mapping[str, Any]
    ) -> Response:
        return self.pages.show(
            template,
            totals=totals(self.c),
            flash=self._flash(request),
            person=session,
            csrf_token=self.visits.csrf(request),
            **{"here": here(request), "query": dict(request.query_params), **values},
        )

    def own(self, request: Request, session: Session, template: str, values: Mapping[str, Any]) -> Response:
        """A page of a person's own: alone, unless the admin site has accepted the session."""
        if session.admin_since is not None and not session.must_change:
            return self.render(request, session, template, {"layout": "shell.html", **values})
        return self.pages.show(
            template,
            layout="base.html",
            flash=self._flash(request),
            csrf_token=self.visits.csrf(request),
            **values,
        )

    def _flash(self, request: Request) -> DoneView | None:
        asked = request.query_params.get("did", "")
        return done(self.c, int(asked[:18])) if asked.isdecimal() else None


def here(request: Request) -> str:
    """This page's own path and query, as the browser asked for it."""
    query = request.scope["query_string"].decode("ascii", errors="replace")
    path: str = request.scope["path"]
    return f"{path}?{query}" if query else path
