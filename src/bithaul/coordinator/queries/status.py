"""GET /status: public counts, no names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, runs, versions, work
from bithaul.exchange.messages import RunState


class StatusView(BaseModel):
    """`run_state` None: no run yet. Task counts by state: pending, leased, accepted, merged, failed, ..."""

    model_config = ConfigDict(frozen=True)

    run_state: RunState | None
    version: int
    progress: float
    tasks: Mapping[str, int]
    open_leases: int
    workers: Mapping[str, int]  # active, drained, gone


def status(c: Coordinator) -> StatusView:
    """Never raises for a coordinator without a run."""
    with c.database.read() as connection:
        run = runs.find_run(connection)
        workers = Counter(w.state for w in fleet.list_workers(connection))
        counts = {state: workers[state] for state in ("active", "drained", "gone")}
        if run is None:
            return StatusView(
                run_state=None, version=0, progress=0.0, tasks={}, open_leases=0, workers=counts
            )
        done = runs.spent(connection, run.id).merged
        return StatusView(
            run_state=run.state,
            version=versions.newest_version(connection, run.id).version,
            progress=run.progress_at(c.clock.now(), tokens=done),
            tasks=work.task_counts(connection, run.id),
            open_leases=len(work.open_leases(connection, run.id)),
            workers=counts,
        )
