"""Register a worker: once to learn the run, again with its layout hash and what its machine can do.

Idempotent per client. Registering again never undoes a drain and revives a worker that was gone. A worker
is ready for work once its layout hash is the run's.

One key is one machine: the instance, which a worker keeps in its state folder, says which. Another one waits
until the first has been silent for so long that it counts as gone, and then takes its place.
"""

from __future__ import annotations

from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.runs import RunRow
from bithaul.errors import Conflict, LayoutMismatch, UnknownName
from bithaul.exchange.messages import RegisterRequest, RegisterResponse
from bithaul.rounds.leases import Ending


def register_worker(c: Coordinator, worker: str, request: RegisterRequest) -> RegisterResponse:
    """Raises `LayoutMismatch`, `UnknownName` (no common codec or weight format), `NotFound` (no run), and
    `Conflict` with code `identity_in_use` while another instance is alive.
    """
    now, replaced = c.clock.now(), False
    with c.database.write(durable=False) as connection:
        run = runs.get_run(connection)
        _agree(run, request)
        row = fleet.find_worker(connection, worker) or fleet.insert_worker(connection, worker, now=now)
        values: dict[str, object] = {"last_seen": now, "gone": False, "audits": request.audits}
        if row.is_another(request.instance):
            _replace(c, connection, run, row, now=now)
            replaced = True
        if request.instance is not None:
            values["instance"] = request.instance
        if request.capabilities is not None:
            values["capabilities"] = request.capabilities.model_dump(mode="json")
            values["calibrated_speed"] = request.capabilities.tokens_per_second
            if request.capabilities.path != (row.capabilities or {}).get("path", request.capabilities.path):
                values["speed"] = 0.0  # another way of computing: measure anew
        if request.layout_hash is not None and request.capabilities is not None:
            values["ready"] = True
        fleet.update_worker(connection, worker, **values)
        description = runs.describe(connection, run, heartbeat_seconds=c.settings.heartbeat_seconds)
    if replaced:
        c.events.merge.set()
    return RegisterResponse(worker=worker, run=description)


def _replace(c: Coordinator, connection: Connection, run: RunRow, row: WorkerRow, *, now: float) -> None:
    """Another instance takes the place of one that is gone: its leases end, since it may still train.

    A report of theirs counts as long as it is the first of its task.
    """
    if not row.gone and now - row.last_seen <= c.settings.worker_gone_seconds:
        raise Conflict(
            f"Another machine works with the key {row.id}: make a key for each machine, or stop the other "
            f"one and wait {c.settings.worker_gone_seconds:g} s, or mark it gone once it has stopped.",
            code="identity_in_use",
        )
    for lease in work.open_leases(connection, run.id, worker=row.id):
        work.end_lease(connection, lease, Ending.REVOKED, now=now, reason="another machine has its key now")


def _agree(run: RunRow, request: RegisterRequest) -> None:
    if run.codec not in request.codecs:
        raise UnknownName(
            f"The run uses the codec {run.codec}, this worker knows {', '.join(request.codecs)}; "
            "update the worker."
        )
    form = run.weight_format.name
    if form not in request.weight_formats:
        raise UnknownName(
            f"The run uses the weight format {form}, this worker knows "
            f"{', '.join(request.weight_formats)}; update the worker."
        )
    if request.layout_hash is not None and request.layout_hash != run.layout_hash:
        raise LayoutMismatch(
            f"The run's layout is {run.layout_hash[:12]}..., this worker's {request.layout_hash[:12]}...; "
            "install the coordinator's version of bithaul on the worker."
        )
