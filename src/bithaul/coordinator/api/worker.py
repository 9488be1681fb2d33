"""The worker's JSON routes: translate, call one use case, translate back. The token says who calls."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response

from bithaul.coordinator.api.desk import Desk
from bithaul.coordinator.api.guard import Caller, WorkerRoute
from bithaul.coordinator.commands.claim_task import claim_task
from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.ingest_logs import ingest_logs
from bithaul.coordinator.commands.register_worker import register_worker
from bithaul.coordinator.context import Coordinator
from bithaul.exchange.messages import (
    INSTANCE_HEADER,
    HeartbeatRequest,
    HeartbeatResponse,
    Instance,
    LogBatch,
    RegisterRequest,
    RegisterResponse,
    TaskMessage,
)

RUN_STATE_HEADER = "Bithaul-Run-State"
SaidInstance = Annotated[Instance | None, Header(alias=INSTANCE_HEADER)]


def worker_routes(c: Coordinator, desk: Desk) -> APIRouter:
    """POST /register, GET /work, POST /heartbeat, POST /logs."""
    router = APIRouter(route_class=WorkerRoute, tags=["work"])

    @router.post("/register")
    async def register(caller: Caller, message: RegisterRequest) -> RegisterResponse:
        """Register, or register again; idempotent per client and instance."""
        return await desk.run(register_worker, c, caller.client_id, message)

    @router.get(
        "/work", responses={200: {"model": TaskMessage}, 204: {"description": "No work; see Retry-After"}}
    )
    async def work(caller: Caller, instance: SaidInstance = None) -> Response:
        """Lease one task; an open lease is returned again. Retry-After may be a fraction of a second."""
        claim = await desk.run(claim_task, c, caller.client_id, instance=instance)
        headers = {RUN_STATE_HEADER: claim.state.value}
        if claim.task is None:
            return Response(status_code=204, headers={**headers, "Retry-After": f"{claim.retry_after:.3g}"})
        return Response(claim.task.model_dump_json(), media_type="application/json", headers=headers)

    @router.post("/heartbeat")
    async def beat(
        caller: Caller, message: HeartbeatRequest, instance: SaidInstance = None
    ) -> HeartbeatResponse:
        """Keep the worker and its lease alive; the answer says drain, pause, or stop."""
        return await desk.run(heartbeat, c, caller.client_id, message, instance=instance)

    @router.post("/logs", status_code=204)
    async def logs(caller: Caller, message: LogBatch) -> None:
        """Store a batch of log entries."""
        await desk.run(ingest_logs, c, caller.client_id, message)

    return router
