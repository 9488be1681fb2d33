"""Tasks: the queue, a browser over all that ever was, a page for each with its attempts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.commands.kick import kick_stuck, kick_task
from bithaul.coordinator.commands.steer import requeue_task
from bithaul.coordinator.queries.taskbrowser import MOST, task_browser, task_page
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.export import export
from bithaul.coordinator.site.frame import Frame

Number = Annotated[int, Path(ge=1, le=10**15)]
Key = Annotated[int | None, Query(ge=0, le=10**15)]


def task_pages(router: APIRouter, frame: Frame) -> None:
    c = frame.c

    @router.get(f"{ADMIN_HOME}/tasks")
    async def tasks(request: Request, state: str = "", worker: str = "", before: Key = None) -> Response:
        def build() -> dict[str, object]:
            view = task_browser(c, state=state, worker=worker, before=before)
            return {"view": view, "asked": {"state": state, "worker": worker}, "paged": before is not None}

        return await frame.show(request, "tasks.html", build)

    @router.get(f"{ADMIN_HOME}/tasks.{{kind}}")
    async def tasks_file(
        request: Request, kind: str, state: str = "", worker: str = "", before: Key = None
    ) -> Response:
        def build() -> Response:
            view = task_browser(c, state=state, worker=worker, before=before, count=MOST)
            return export(view.rows, name="tasks", kind=kind)

        return await frame.data(request, build)

    @router.get(f"{ADMIN_HOME}/tasks/{{task}}/attempts.{{kind}}")
    async def task_attempts(request: Request, task: Number, kind: str) -> Response:
        def build() -> Response:
            return export(task_page(c, task).attempts, name=f"task-{task}-attempts", kind=kind)

        return await frame.data(request, build)

    @router.get(f"{ADMIN_HOME}/tasks/{{task}}/reports.{{kind}}")
    async def task_reports(request: Request, task: Number, kind: str) -> Response:
        def build() -> Response:
            return export(task_page(c, task).reports, name=f"task-{task}-reports", kind=kind)

        return await frame.data(request, build)

    @router.get(f"{ADMIN_HOME}/tasks/{{task}}")
    async def task_details(request: Request, task: Number) -> Response:
        return await frame.show(request, "task.html", lambda: {"view": task_page(c, task)})

    @router.post(f"{ADMIN_HOME}/tasks/kick")
    async def kick_all(request: Request) -> Response:
        return await frame.act(
            request, lambda session: kick_stuck(c, actor=session.name), back=f"{ADMIN_HOME}/tasks"
        )

    @router.post(f"{ADMIN_HOME}/tasks/{{task}}/kick")
    async def kick(request: Request, task: Number) -> Response:
        return await frame.act(
            request,
            lambda session: kick_task(c, task, actor=session.name),
            back=f"{ADMIN_HOME}/tasks/{task}",
        )

    @router.post(f"{ADMIN_HOME}/tasks/{{task}}/requeue")
    async def requeue(request: Request, task: Number) -> Response:
        return await frame.act(
            request,
            lambda session: requeue_task(c, task, actor=session.name),
            back=f"{ADMIN_HOME}/tasks/{task}",
        )
