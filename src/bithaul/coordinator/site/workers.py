"""The fleet, and a page for each machine: what it does, what it did, why something of it did not count."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from bithaul.coordinator.commands.standing import pin_worker, restore_worker, set_aside_worker
from bithaul.coordinator.commands.steer import call_gone, drain_worker
from bithaul.coordinator.queries.machines import fleet_page
from bithaul.coordinator.queries.workerpage import worker_page
from bithaul.coordinator.site.admin import ADMIN_HOME
from bithaul.coordinator.site.export import export
from bithaul.coordinator.site.frame import Frame
from bithaul.exchange.messages import Name

MOST = 10_000  # rows of one export
WorkerName = Annotated[Name, Path()]


def worker_pages(router: APIRouter, frame: Frame) -> None:
    c = frame.c

    @router.get(f"{ADMIN_HOME}/workers")
    async def workers(request: Request, q: str = "", state: str = "", after: str = "") -> Response:
        def build() -> dict[str, object]:
            view = fleet_page(c, search=q, state=state, after=after)
            return {"view": view, "q": q, "state": state, "after": after}

        return await frame.show(request, "workers.html", build)

    @router.get(f"{ADMIN_HOME}/workers.{{kind}}")
    async def workers_file(request: Request, kind: str, q: str = "", state: str = "") -> Response:
        def build() -> Response:
            rows = fleet_page(c, search=q, state=state, count=MOST).rows
            return export(rows, name="workers", kind=kind)

        return await frame.data(request, build)

    @router.get(f"{ADMIN_HOME}/workers/{{worker}}/reports.{{kind}}")
    async def worker_reports(request: Request, worker: WorkerName, kind: str) -> Response:
        def build() -> Response:
            return export(worker_page(c, worker).reports, name=f"{worker}-reports", kind=kind)

        return await frame.data(request, build)

    @router.get(f"{ADMIN_HOME}/workers/{{worker}}")
    async def worker_details(request: Request, worker: WorkerName) -> Response:
        return await frame.show(request, "worker.html", lambda: {"view": worker_page(c, worker)})

    @router.post(f"{ADMIN_HOME}/workers/{{worker}}/drain")
    async def drain(request: Request, worker: WorkerName) -> Response:
        return await frame.act(
            request, lambda person: drain_worker(c, worker, on=True, actor=person.name), back=_page(worker)
        )

    @router.post(f"{ADMIN_HOME}/workers/{{worker}}/resume")
    async def resume(request: Request, worker: WorkerName) -> Response:
        return await frame.act(
            request, lambda person: drain_worker(c, worker, on=False, actor=person.name), back=_page(worker)
        )

    @router.post(f"{ADMIN_HOME}/workers/{{worker}}/gone")
    async def gone(request: Request, worker: WorkerName) -> Response:
        return await frame.act(
            request, lambda person: call_gone(c, worker, actor=person.name), back=_page(worker)
        )

    @router.post(f"{ADMIN_HOME}/workers/{{worker}}/set-aside")
    async def set_aside(request: Request, worker: WorkerName) -> Response:
        return await frame.act(
            request, lambda person: set_aside_worker(c, worker, actor=person.name), back=_page(worker)
        )

    @router.post(f"{ADMIN_HOME}/workers/{{worker}}/restore")
    async def restore(request: Request, worker: WorkerName) -> Response:
        return await frame.act(
            request, lambda person: restore_worker(c, worker, actor=person.name), back=_page(worker)
        )

    @router.post(f"{ADMIN_HOME}/workers/{{worker}}/pin")
    async def pin(request: Request, worker: WorkerName) -> Response:
        return await frame.act(
            request, lambda person: pin_worker(c, worker, actor=person.name), back=_page(worker)
        )


def _page(worker: str) -> str:
    return f"{ADMIN_HOME}/workers/{worker}"
