"""The dashboard, and the curves its charts are fed with."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.queries.curve import CurveView, curve
from bithaul.coordinator.queries.dashboard import dashboard
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.frame import Frame

Number = Annotated[int, Query(ge=0, le=10**15)]


def dashboard_pages(router: APIRouter, frame: Frame) -> None:
    c = frame.c

    @router.get(ADMIN_HOME)
    async def home(request: Request) -> Response:
        return await frame.show(request, "dashboard.html", lambda: {"view": dashboard(c)})

    @router.get(f"{ADMIN_HOME}/curve.json")
    async def curve_data(
        request: Request, after: Number = 0, first: Number = 0, last: Number = 0
    ) -> Response:
        """The whole curve, or what is new since `after`, or every version from `first` to `last`."""
        return await frame.data(request, lambda: _json(curve(c, after=after, first=first, last=last)))


def _json(view: CurveView) -> Response:
    return Response(view.model_dump_json(), media_type="application/json")
