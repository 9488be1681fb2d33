"""One worker: its state, its speed over a day, its last reports and why some did not count, its words."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import history, logbook, runs
from bithaul.coordinator.database.logbook import LogFilter
from bithaul.coordinator.queries.logbook import LogLine, line_of
from bithaul.coordinator.queries.machines import AccountsOf, MachineView, machines

DAY_BUCKETS = 96  # a quarter of an hour each
LAST = 25


class ReportView(BaseModel):
    """One judged report. `verdict`: accepted, too_late, stale or rejected."""

    model_config = ConfigDict(frozen=True)

    seq: int
    time: float
    task: int
    verdict: str
    code: str
    reason: str
    base_version: int
    staleness: int
    tokens: int
    seconds: float
    loss: float
    loss_change: float  # from the first inner step to the last; below 0 is better
    agreement: float | None  # cosine to the momentum or to the others of its version, if the run looks
    score: float | None  # whether it lowers the loss on its own examples more than on others, -1 to 1
    merged_in: int | None


class WorkerPageView(BaseModel):
    model_config = ConfigDict(frozen=True)

    now: float
    machine: MachineView
    day: list[float | None]  # tokens per second in the last 24 hours
    reports: list[ReportView]  # newest first
    lines: list[LogLine]  # newest first


def worker_page(c: Coordinator, worker: str, *, accounts: AccountsOf = history.accounts) -> WorkerPageView:
    """Raises `NotFound` for a worker that never registered."""
    view = machines(c, only=[worker], accounts=accounts)
    start = view.now - 86_400.0
    with c.database.read() as connection:
        days = history.speed_buckets(
            connection, start=start, width=86_400.0 / DAY_BUCKETS, count=DAY_BUCKETS, only=[worker]
        )
        run = runs.find_run(connection)
        rows = [] if run is None else history.reports_of(connection, run.id, worker, count=LAST)
        entries = logbook.page(connection, LogFilter(worker=worker), count=12)
    return WorkerPageView(
        now=view.now,
        machine=view.machines[0],
        day=list(days.get(worker, [None] * DAY_BUCKETS)),
        reports=[ReportView(**row) for row in rows],
        lines=[line_of(entry) for entry in entries],
    )
