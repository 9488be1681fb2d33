"""The admin site's data as JSON, for scripts (scope `bithaul.admin`): the queries that the pages show."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from bithaul.coordinator.api.guard import AdminRoute
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.curve import CurveView, curve
from bithaul.coordinator.queries.dashboard import DashboardView, dashboard
from bithaul.coordinator.queries.logbook import LogView, log_page, make_filter
from bithaul.coordinator.queries.machines import FleetView, machines
from bithaul.coordinator.queries.runpage import RunPageView, VersionPageView, run_page, version_page
from bithaul.coordinator.queries.taskbrowser import TaskPageView, TasksView, task_browser, task_page
from bithaul.coordinator.queries.totals import TotalsView, totals
from bithaul.coordinator.queries.workerpage import WorkerPageView, worker_page
from bithaul.exchange.messages import Name

PathName = Annotated[Name, Path()]
Number = Annotated[int, Path(ge=1, le=10**15)]
From = Annotated[int, Query(ge=0, le=10**15)]
Key = Annotated[int | None, Query(ge=0, le=10**15)]
Word = Annotated[str, Query(max_length=200)]
Since = Annotated[str, Query(max_length=200, alias="from")]


def view_routes(c: Coordinator) -> APIRouter:
    router = APIRouter(route_class=AdminRoute, tags=["admin"], prefix="/api/views")

    @router.get("/totals")
    def totals_view() -> TotalsView:
        """The strip of totals."""
        return totals(c)

    @router.get("/dashboard")
    def dashboard_view() -> DashboardView:
        """Services, fleet, newest versions, trouble."""
        return dashboard(c)

    @router.get("/curve")
    def curve_view(after: From = 0, first: From = 0, last: From = 0) -> CurveView:
        """Losses, speed and staleness by version; with `after` what is new since that cursor."""
        return curve(c, after=after, first=first, last=last)

    @router.get("/workers")
    def workers_view() -> FleetView:
        """All workers."""
        return machines(c)

    @router.get("/workers/{worker}")
    def worker_view(worker: PathName) -> WorkerPageView:
        """One worker with its last reports and words."""
        return worker_page(c, worker)

    @router.get("/tasks")
    def tasks_view(state: Word = "", worker: Word = "", before: Key = None) -> TasksView:
        """Tasks, newest first, by pages."""
        return task_browser(c, state=state, worker=worker, before=before)

    @router.get("/tasks/{task}")
    def task_view(task: Number) -> TaskPageView:
        """One task with its attempts and reports."""
        return task_page(c, task)

    @router.get("/versions")
    def versions_view(before: Key = None, kept: bool = False) -> RunPageView:
        """The run and its versions, newest first, by pages."""
        return run_page(c, before=before, kept=kept)

    @router.get("/versions/{version}")
    def version_view(version: Number) -> VersionPageView:
        """One version and who made it."""
        return version_page(c, version)

    @router.get("/logs")
    def logs_view(
        worker: Word = "",
        level: Word = "",
        text: Word = "",
        period: Word = "",
        since: Since = "",
        until: Word = "",
        before: Key = None,
        after: Key = None,
    ) -> LogView:
        """Log entries, newest first, by pages, with counts per level; times as in 2026-11-28T05:30Z."""
        wanted = make_filter(
            c, worker=worker, level=level, text=text, period=period, since=since, until=until
        )
        return log_page(c, wanted, before=before, after=after)

    return router
