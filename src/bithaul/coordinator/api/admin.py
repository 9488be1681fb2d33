"""The operator's API (scope `bithaul.admin`): progress, steering, worker keys, metrics.

A leaked admin token must not dig in: clients with the admin scope are made and changed only by the CLI on
the coordinator's machine.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from bithaul.coordinator.api.guard import AdminRoute, Caller
from bithaul.coordinator.api.metrics import HttpMetrics
from bithaul.coordinator.commands.roll_back import RolledBack, roll_back
from bithaul.coordinator.commands.standing import pin_worker, restore_worker, set_aside_worker
from bithaul.coordinator.commands.steer import drain_worker, pause_run, resume_run
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.identity.audit import AuditRow, read_audit
from bithaul.coordinator.identity.clients import (
    LONGEST_GRACE,
    Client,
    create_client,
    delete_client,
    disable_client,
    enable_client,
    list_clients,
    rotate_client,
)
from bithaul.coordinator.queries.metrics import metrics
from bithaul.coordinator.queries.progress import ProgressView, progress
from bithaul.coordinator.queries.runs import RunView, run_view
from bithaul.errors import Forbidden
from bithaul.exchange.messages import WORKER_SCOPE, Name, RunState

PathName = Annotated[Name, Path()]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DrainRequest(_Request):
    on: bool = True


class RollbackRequest(_Request):
    version: Annotated[int, Field(ge=1, le=2**53)]


class SetAsideRequest(_Request):
    reason: Annotated[str, Field(max_length=200)] = ""


class KeyRequest(_Request):
    client_id: Name


class RotateRequest(_Request):
    grace_seconds: Annotated[float, Field(ge=0, le=LONGEST_GRACE, allow_inf_nan=False)] = 0.0


class IssuedKey(BaseModel):
    """The only time a secret is shown."""

    client_id: str
    scope: str
    secret: str


class Keys(BaseModel):
    keys: list[Client]


class Audit(BaseModel):
    rows: list[AuditRow]


class RunAnswer(BaseModel):
    state: RunState


class StandingAnswer(BaseModel):
    """What a worker's updates weigh from now on."""

    worker: str
    standing: str
    weight: float
    why: str


def admin_routes(c: Coordinator, http: HttpMetrics) -> APIRouter:
    router = APIRouter(route_class=AdminRoute, tags=["admin"])

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def prometheus() -> Response:
        """Figures for Prometheus; no names, no secrets."""
        return Response(http.render(metrics(c)), media_type=http.media_type)

    @router.get("/api/progress")
    def run_progress() -> ProgressView:
        """How training goes."""
        return progress(c)

    @router.post("/api/run/pause")
    def pause(caller: Caller) -> RunAnswer:
        """No new leases until resumed."""
        return RunAnswer(state=RunState(pause_run(c, actor=caller.client_id).state))

    @router.post("/api/run/resume")
    def resume(caller: Caller) -> RunAnswer:
        """Undo a pause."""
        return RunAnswer(state=RunState(resume_run(c, actor=caller.client_id).state))

    @router.get("/api/run")
    def show_run() -> RunView:
        """The run, its options and its versions."""
        return run_view(c)

    @router.post("/api/run/rollback")
    def rollback(caller: Caller, message: RollbackRequest) -> RolledBack:
        """Put an older version in force again, as the newest."""
        return roll_back(c, message.version, actor=caller.client_id)

    @router.post("/api/workers/{worker}/set-aside")
    def set_aside(caller: Caller, worker: PathName, message: SetAsideRequest) -> StandingAnswer:
        """Give a worker no more work; what it still reports is credited, not merged."""
        return standing(set_aside_worker(c, worker, reason=message.reason, actor=caller.client_id))

    @router.post("/api/workers/{worker}/restore")
    def restore(caller: Caller, worker: PathName) -> StandingAnswer:
        """Put a worker on probation, whatever it was."""
        return standing(restore_worker(c, worker, actor=caller.client_id))

    @router.post("/api/workers/{worker}/pin")
    def pin(caller: Caller, worker: PathName) -> StandingAnswer:
        """Give a worker full weight, whatever the gates say."""
        return standing(pin_worker(c, worker, actor=caller.client_id))

    def standing(row: WorkerRow) -> StandingAnswer:
        trust = row.trust.at(c.clock.now())
        return StandingAnswer(
            worker=row.id, standing=trust.standing, weight=trust.weight(c.clock.now()), why=trust.why
        )

    @router.post("/api/workers/{worker}/drain", status_code=204)
    def drain(caller: Caller, worker: PathName, message: DrainRequest) -> None:
        """Let a worker finish its step and take no more work, or take it back."""
        drain_worker(c, worker, on=message.on, actor=caller.client_id)

    @router.get("/api/keys")
    def keys() -> Keys:
        """All clients, without secrets."""
        return Keys(keys=list_clients(c))

    @router.post("/api/keys", status_code=201)
    def create_key(caller: Caller, message: KeyRequest) -> IssuedKey:
        """Create a worker client; its secret is in this answer only."""
        secret = create_client(c, message.client_id, scope=WORKER_SCOPE, actor=caller.client_id)
        return IssuedKey(client_id=message.client_id, scope=WORKER_SCOPE, secret=secret)

    @router.post("/api/keys/{client}/rotate")
    def rotate_key(caller: Caller, client: PathName, message: RotateRequest) -> IssuedKey:
        """Give a worker a new secret; its tokens die at once."""
        _workers_only(c, client)
        secret = rotate_client(c, client, grace_seconds=message.grace_seconds, actor=caller.client_id)
        return IssuedKey(client_id=client, scope=WORKER_SCOPE, secret=secret)

    @router.post("/api/keys/{client}/disable", status_code=204)
    def disable_key(caller: Caller, client: PathName) -> None:
        """Refuse a worker from now on."""
        _workers_only(c, client)
        disable_client(c, client, actor=caller.client_id)

    @router.post("/api/keys/{client}/enable", status_code=204)
    def enable_key(caller: Caller, client: PathName) -> None:
        """Accept a disabled worker's secret again; its old tokens stay dead."""
        _workers_only(c, client)
        enable_client(c, client, actor=caller.client_id)

    @router.delete("/api/keys/{client}", status_code=204)
    def delete_key(caller: Caller, client: PathName) -> None:
        """Forget a worker's credential; what it did stays."""
        _workers_only(c, client)
        delete_client(c, client, actor=caller.client_id)

    @router.get("/api/audit")
    def audit(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Audit:
        """Who did what, newest first."""
        return Audit(rows=read_audit(c, limit=limit))

    return router


def _workers_only(c: Coordinator, client_id: str) -> None:
    """Workers only: what signs in people or operates the coordinator is changed on its machine."""
    if any(client.id == client_id and client.scope != WORKER_SCOPE for client in list_clients(c)):
        raise Forbidden(
            "Only workers are changed here; for others use `bithaul keys` on the coordinator's machine.",
            code="needs_machine_access",
        )
