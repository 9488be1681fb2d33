"""Routes without a token: health and status."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.health import HealthView, health
from bithaul.coordinator.queries.status import StatusView, status

HEALTH_SECONDS = 1.0


def public_routes(c: Coordinator) -> APIRouter:
    router = APIRouter()

    recent = _RecentHealth(c)

    @router.get("/health", tags=["public"], responses={503: {"model": HealthView}})
    async def check_health() -> JSONResponse:
        """Liveness and readiness that really check, at most once a second."""
        view = await recent.view()
        return JSONResponse(view.model_dump(mode="json"), status_code=200 if view.ok else 503)

    @router.get("/status", tags=["public"])
    def public_status() -> StatusView:
        """Counts, no names."""
        return status(c)

    return router


class _RecentHealth:
    """Everyone may ask for health and each check writes to disk, so askers share one result a second."""

    def __init__(self, c: Coordinator) -> None:
        self._c = c
        self._lock = asyncio.Lock()
        self._view: HealthView | None = None
        self._at = 0.0

    async def view(self) -> HealthView:
        async with self._lock:  # waiting here takes no thread
            now = self._c.clock.monotonic()
            if self._view is None or now - self._at >= HEALTH_SECONDS:
                self._view = await run_in_threadpool(health, self._c)
                self._at = now
            return self._view
