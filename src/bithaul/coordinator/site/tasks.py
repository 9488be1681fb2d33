"""Tasks: the queue, a browser over all that ever was, a page for each with its attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.commands.kick import kick_stuck, kick_task
from bithaul.coordinator.commands.steer import requeue_task
from bithaul.coordinator.queries.taskbrowser import task_browser, task_page
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.export import NEWEST, PAGE, Rows, export, in_pages
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
    async def tasks_file(request: Request, kind: str, state: str = "", worker: str = "") -> Response:
        def read(before: int) -> tuple[Rows, int | None]:
            view = task_browser(c, state=state, worker=worker, before=before, count=PAGE)
            return view.rows, view.older

        return await frame.data(request, lambda: export(in_pages(read, NEWEST), name="tasks", kind=kind))

    @router.get(f"{ADMIN_HOME}/tasks/{{task}}/{{table}}.{{kind}}")
    async def task_table(
        request: Request, task: Number, table: Literal["attempts", "reports"], kind: str
    ) -> Response:
        def build() -> Response:
            view = task_page(c, task)
            rows: Sequence[BaseModel] = view.attempts if table == "attempts" else view.reports
            return export([rows], name=f"task-{task}-{table}", kind=kind)

        return await frame.data(request, build)

    @router.get(f"{ADMIN_HOME}/tasks/{{task}}")
    async def task_details(request: Request, task: Number) -> Response:
        return await frame.show(request, "task.html", lambda: {"view": task_page(c, task)})

    @router.post(f"{ADMIN_HOME}/tasks/kick")
    async def kick_all(request: Request) -> Response:
        return await frame.act(
            request, lambda session: kick_stuck(c, actor=session.name), back=f"{ADMIN_HOME}/tasks"
        )

    for verb, command in {"kick": kick_task, "requeue": requeue_task}.items():
        _action(router, frame, verb, command)


def _action(router: APIRouter, frame: Frame, verb: str, command: Callable[..., object]) -> None:
    @router.post(f"{ADMIN_HOME}/tasks/{{task}}/{verb}")
    async def act(request: Request, task: Number) -> Response:
        return await frame.act(
            request,
            lambda person: command(frame.c, task, actor=person.name),
            back=f"{ADMIN_HOME}/tasks/{task}",
        )
