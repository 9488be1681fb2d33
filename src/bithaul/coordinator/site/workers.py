"""The fleet, and a page for each machine: what it does, what it did, why something of it did not count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.commands.standing import pin_worker, restore_worker, set_aside_worker
from bithaul.coordinator.commands.steer import call_gone, drain_worker
from bithaul.coordinator.database.history import Accounts
from bithaul.coordinator.queries.machines import fleet_page
from bithaul.coordinator.queries.workerpage import worker_page
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.export import PAGE, Rows, export, in_pages
from bithaul.coordinator.site.frame import Frame
from bithaul.exchange.messages import Name

WorkerName = Annotated[Name, Path()]
Command = Callable[..., object]  # (coordinator, worker, actor=...)


def worker_pages(router: APIRouter, frame: Frame) -> None:
    c = frame.c
    accounts = Accounts().of

    @router.get(f"{ADMIN_HOME}/workers")
    async def workers(request: Request, q: str = "", state: str = "", after: str = "") -> Response:
        def build() -> dict[str, object]:
            view = fleet_page(c, search=q, state=state, after=after, accounts=accounts)
            return {"view": view, "q": q, "state": state, "after": after}

        return await frame.show(request, "workers.html", build)

    @router.get(f"{ADMIN_HOME}/workers.{{kind}}")
    async def workers_file(request: Request, kind: str, q: str = "", state: str = "") -> Response:
        def read(after: str) -> tuple[Rows, str | None]:
            view = fleet_page(c, search=q, state=state, after=after, count=PAGE, accounts=accounts)
            return view.rows, view.next_after

        return await frame.data(request, lambda: export(in_pages(read, ""), name="workers", kind=kind))

    @router.get(f"{ADMIN_HOME}/workers/{{worker}}/reports.{{kind}}")
    async def worker_reports(request: Request, worker: WorkerName, kind: str) -> Response:
        def build() -> Response:
            return export([worker_page(c, worker).reports], name=f"{worker}-reports", kind=kind)

        return await frame.data(request, build)

    @router.get(f"{ADMIN_HOME}/workers/{{worker}}")
    async def worker_details(request: Request, worker: WorkerName) -> Response:
        return await frame.show(
            request, "worker.html", lambda: {"view": worker_page(c, worker, accounts=accounts)}
        )

    for verb, command in ACTIONS.items():
        _action(router, frame, verb, command)


ACTIONS: Mapping[str, Command] = {
    "drain": partial(drain_worker, on=True),
    "resume": partial(drain_worker, on=False),
    "gone": call_gone,
    "set-aside": set_aside_worker,
    "restore": restore_worker,
    "pin": pin_worker,
}


def _action(router: APIRouter, frame: Frame, verb: str, command: Command) -> None:
    @router.post(f"{ADMIN_HOME}/workers/{{worker}}/{verb}")
    async def act(request: Request, worker: WorkerName) -> Response:
        return await frame.act(
            request,
            lambda person: command(frame.c, worker, actor=person.name),
            back=f"{ADMIN_HOME}/workers/{worker}",
        )
