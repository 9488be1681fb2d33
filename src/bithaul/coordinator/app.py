"""The coordinator's ASGI application: one FastAPI app over one `Coordinator`, wrapped in one envelope.

No state of its own beside throttling and request counts, so two may live in one process. Documentation pages
are off; /openapi.json is served and is what the tests fuzz.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from bithaul import __version__
from bithaul.coordinator.api.admin import admin_routes
from bithaul.coordinator.api.blobs import blob_routes
from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.csrf import CsrfGuard
from bithaul.coordinator.api.desk import Desk
from bithaul.coordinator.api.door import Door
from bithaul.coordinator.api.gradient import gradient_routes
from bithaul.coordinator.api.metrics import HttpMetrics
from bithaul.coordinator.api.middleware import Envelope, allowed_hosts
from bithaul.coordinator.api.openapi import RESPONSES, Api
from bithaul.coordinator.api.openid import openid_routes
from bithaul.coordinator.api.peer import Peers
from bithaul.coordinator.api.problems import Answers
from bithaul.coordinator.api.public import public_routes
from bithaul.coordinator.api.queue import queue_routes
from bithaul.coordinator.api.views import view_routes
from bithaul.coordinator.api.worker import worker_routes
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.provider import Identity
from bithaul.coordinator.identity.throttle import Limits, Window
from bithaul.coordinator.services.runner import ServiceRunner
from bithaul.coordinator.site.assets import Assets
from bithaul.coordinator.site.environment import make_environment
from bithaul.coordinator.site.pages import Pages
from bithaul.coordinator.site.routes import site_routes
from bithaul.coordinator.site.warmup import warm_up


def create_api(
    c: Coordinator, http: HttpMetrics, *, runner: ServiceRunner | None = None, limits: Limits | None = None
) -> FastAPI:
    """The routes. With a `runner`, its services run as long as the app's lifespan."""
    logging.getLogger("authlib").setLevel(logging.INFO)  # A10: at DEBUG it prints live tokens
    identity = Identity(c, limits=limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if runner is not None:
            await run_in_threadpool(runner.start)
        warming = asyncio.create_task(warm_up(app, c, pages))
        try:
            yield
        finally:
            await warming
            if runner is not None:
                await run_in_threadpool(runner.stop)

    app = Api(
        title="bithaul coordinator",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        responses=RESPONSES,
        telemetry={"auto_configure": False},
    )
    app.state.identity = identity
    app.state.desk = desk = Desk()
    app.state.worker_requests = Window(c.settings.worker_requests_per_minute)
    assets = Assets()
    pages = Pages(c.settings, make_environment(assets))
    answers = Answers(pages.problem, pages.personal)
    answers.install(app)
    cookies = Cookies(c.settings)
    peers = Peers(c.settings)
    app.add_middleware(
        CsrfGuard,
        cookies=cookies,
        sessions=identity.sessions,
        public_url=c.settings.base_url,
        answers=answers,
    )
    app.add_middleware(Door, threads=identity.password_threads, answers=answers)  # outside of CsrfGuard
    app.include_router(public_routes(c))
    app.include_router(openid_routes(identity, peers))
    app.include_router(worker_routes(c, desk))
    app.include_router(gradient_routes(c, identity, desk))
    app.include_router(blob_routes(c))
    app.include_router(admin_routes(c, http))
    app.include_router(queue_routes(c))
    app.include_router(view_routes(c))
    app.include_router(site_routes(c, identity, cookies, peers, assets, pages))
    return app


def create_app(
    c: Coordinator, *, runner: ServiceRunner | None = None, limits: Limits | None = None
) -> ASGIApp:
    """What a server runs."""
    http = HttpMetrics()
    return Envelope(
        create_api(c, http, runner=runner, limits=limits),
        hosts=allowed_hosts(c.settings),
        https=urlsplit(c.settings.base_url).scheme == "https",
        observe=http.observe,
    )
