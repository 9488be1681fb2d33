"""Logs: filters in the address, pages by key, counts per level, and a live tail."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.queries.logbook import log_page, log_rows, log_tail, make_filter
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.export import NEWEST, PAGE, Rows, export, in_pages
from bithaul.coordinator.site.frame import Frame

Key = Annotated[int | None, Query(ge=0, le=10**15)]
From = Annotated[str, Query(alias="from", max_length=40)]
Until = Annotated[str, Query(max_length=40)]
NEWEST_SEEN = "bithaul-newest"  # the entry that the next question of a live tail goes on from
MORE = "bithaul-more"  # there is more already


def log_pages(router: APIRouter, frame: Frame) -> None:
    c = frame.c

    @router.get(f"{ADMIN_HOME}/logs")
    async def logs(
        request: Request,
        worker: str = "",
        level: str = "",
        q: str = "",
        period: str = "",
        since: From = "",
        until: Until = "",
        before: Key = None,
        after: Key = None,
    ) -> Response:
        def build() -> dict[str, object]:
            wanted = make_filter(
                c, worker=worker, level=level, text=q, period=period, since=since, until=until
            )
            view = log_page(c, wanted, before=before, after=after)
            asked = {
                "worker": worker,
                "level": level,
                "q": q,
                "period": period,
                "from": since,
                "until": until,
            }
            return {
                "view": view,
                "asked": asked,
                "since": wanted.since if since else None,
                "until": wanted.until,
                "paged": before is not None or after is not None or bool(until),
            }

        return await frame.show(request, "logs.html", build)

    @router.get(f"{ADMIN_HOME}/logs/tail")
    async def tail(
        request: Request, after: Annotated[int, Query(ge=0)], worker: str = "", level: str = "", q: str = ""
    ) -> Response:
        """Rows of the table that came after one entry, for the live tail; headers say how it goes on."""

        def build() -> Response:
            view = log_tail(c, make_filter(c, worker=worker, level=level, text=q), after=after)
            part = frame.pages.show("logrows.html", lines=view.lines, fresh=True)
            part.headers[NEWEST_SEEN] = str(view.newest)
            if view.more:
                part.headers[MORE] = "yes"
            return part

        return await frame.data(request, build)

    @router.get(f"{ADMIN_HOME}/logs.{{kind}}")
    async def logs_file(
        request: Request,
        kind: str,
        worker: str = "",
        level: str = "",
        q: str = "",
        period: str = "",
        since: From = "",
        until: Until = "",
    ) -> Response:
        def build() -> Response:
            wanted = make_filter(
                c, worker=worker, level=level, text=q, period=period, since=since, until=until
            )

            def read(before: int) -> tuple[Rows, int | None]:
                rows = log_rows(c, wanted, before=before, count=PAGE)
                return rows, rows[-1].id if len(rows) == PAGE else None

            return export(in_pages(read, NEWEST), name="logs", kind=kind)

        return await frame.data(request, build)
