"""What the first visitor after a start would wait for, done beforehand: routes, templates, statements.

FastAPI prepares its routes at the first request, Jinja2 a template and SQLAlchemy a statement at its first
use: together a quarter of a second. It runs beside the first requests and changes nothing.
"""

from __future__ import annotations

import logging

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Scope

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.curve import curve
from bithaul.coordinator.queries.dashboard import dashboard
from bithaul.coordinator.queries.totals import totals
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.pages import Pages
from bithaul.errors import BithaulError

log = logging.getLogger(__name__)


async def warm_up(app: ASGIApp, c: Coordinator, pages: Pages) -> None:
    """Never raises what a page could tell better."""
    await _knock(app)
    await run_in_threadpool(_look, c, pages)


async def _knock(app: ASGIApp) -> None:
    """Ask for the dashboard as nobody, which sends on to the sign-in."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": ADMIN_HOME,
        "raw_path": ADMIN_HOME.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": None,
        "server": None,
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        log.debug("warming up: %s", message["type"])

    await app(scope, receive, send)


def _look(c: Coordinator, pages: Pages) -> None:
    pages.compile_templates()
    try:
        if dashboard(c).has_run:
            curve(c)
        totals(c)
    except (BithaulError, SQLAlchemyError, OSError) as error:
        log.info("the dashboard could not be prepared: %s", error)
