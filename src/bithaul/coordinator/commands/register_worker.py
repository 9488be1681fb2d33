"""Register a worker: once to learn the run, again with its layout hash and what its machine can do.

Idempotent per client. Registering again never undoes a drain and revives a worker that was gone. A worker
is ready for work once its layout hash is the run's.
"""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs
from bithaul.coordinator.database.runs import RunRow
from bithaul.errors import LayoutMismatch, UnknownName
from bithaul.exchange.messages import RegisterRequest, RegisterResponse


def register_worker(c: Coordinator, worker: str, request: RegisterRequest) -> RegisterResponse:
    """Raises `LayoutMismatch`, `UnknownName` (no common codec or weight format), `NotFound` (no run)."""
    now = c.clock.now()
    with c.database.write(durable=False) as connection:
        run = runs.get_run(connection)
        _agree(run, request)
        row = fleet.find_worker(connection, worker) or fleet.insert_worker(connection, worker, now=now)
        values: dict[str, object] = {"last_seen": now, "gone": False, "audits": request.audits}
        if request.capabilities is not None:
            values["capabilities"] = request.capabilities.model_dump(mode="json")
            values["calibrated_speed"] = request.capabilities.tokens_per_second
            if request.capabilities.path != (row.capabilities or {}).get("path", request.capabilities.path):
                values["speed"] = 0.0  # another way of computing: measure anew
        if request.layout_hash is not None and request.capabilities is not None:
            values["ready"] = True
        fleet.update_worker(connection, worker, **values)
        return RegisterResponse(
            worker=worker,
            run=runs.describe(connection, run, heartbeat_seconds=c.settings.heartbeat_seconds),
        )


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
