"""The dashboard beside its curves: health of services, the fleet in words, newest versions, trouble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import history, runs, services, versions
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.queries.health import PROBE, problems
from bithaul.coordinator.queries.machines import MachineNow, Seen, seen_now

TIMELINE = 24  # newest versions shown
TROUBLES = 6
WORKERS = 12  # shown by name; of a larger fleet those that need somebody come first
STALLED = 6  # told one by one
_FIRST = ("stalled", "resting", "calibrating")
_LAST = ("drained", "gone")
OVERDUE_BEATS = 3  # a service that was silent for so many intervals is overdue ...
OVERDUE_SECONDS = 60.0  # ... but never sooner


class ServiceView(BaseModel):
    """`state`: ok, failed or overdue."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: str
    message: str
    finished_at: float
    seconds: float


class VersionView(BaseModel):
    """One version of the timeline. Losses in nats per counted token."""

    model_config = ConfigDict(frozen=True)

    version: int
    time: float
    tokens: int  # in its updates
    tokens_total: int
    reports: int
    contributors: int
    staleness: float
    step_norm: float
    train_loss: float | None
    heldout_loss: float | None
    size: int
    sha256: str
    pinned: bool
    kept: bool  # its weights can still be had
    merge_seconds: float

    @classmethod
    def of(cls, row: VersionRow) -> VersionView:
        return cls(
            version=row.version,
            time=row.created_at,
            tokens=row.tokens,
            tokens_total=row.tokens_total,
            reports=row.reports,
            contributors=row.contributors,
            staleness=row.staleness,
            step_norm=row.step_norm,
            train_loss=row.train_loss,
            heldout_loss=row.heldout_loss,
            size=row.size,
            sha256=row.sha256,
            pinned=row.pinned,
            kept=row.retired_at is None,
            merge_seconds=row.merge_seconds,
        )


class TroubleView(BaseModel):
    """A report that did not count."""

    model_config = ConfigDict(frozen=True)

    time: float
    worker: str
    task: int
    verdict: str
    code: str
    reason: str


class DashboardView(BaseModel):
    model_config = ConfigDict(frozen=True)

    now: float
    has_run: bool
    problems: list[str]
    services: list[ServiceView]
    timeline: list[VersionView]  # newest first
    troubles: list[TroubleView]  # newest first
    states: Mapping[str, int]  # workers by state
    workers: list[MachineNow]  # those that need somebody first, then by name; not all of a large fleet
    workers_total: int
    stalled: list[MachineNow]  # the first few
    disk_free: int


def dashboard(c: Coordinator) -> DashboardView:
    """Works without a run too."""
    now = c.clock.now()
    fleet = seen_now(c)
    states = Counter(m.state for m in fleet)
    troubles = problems(c)
    with c.database.read() as connection:
        results = services.list_results(connection)
        run = runs.find_run(connection)
        newest = [] if run is None else versions.newest_versions(connection, run.id, count=TIMELINE)
        lost = [] if run is None else history.rejections(connection, run.id, count=TROUBLES)
    intervals = {
        "merger": c.settings.merge_interval,
        "sweeper": c.settings.sweep_interval,
        "prune": c.settings.prune_interval,
        "retention": c.settings.retention_interval,
        "disk": c.settings.disk_interval,
        "scorer": c.settings.score_interval,
    }
    return DashboardView(
        now=now,
        has_run=run is not None,
        problems=troubles,
        services=[
            _service(r, interval=intervals.get(r.name, 3600.0), now=now) for r in results if r.name != PROBE
        ],
        timeline=[VersionView.of(row) for row in reversed(newest)],
        troubles=[
            TroubleView(
                time=r.time, worker=r.worker, task=r.task, verdict=r.verdict, code=r.code, reason=r.reason
            )
            for r in lost
        ],
        states=dict(sorted(states.items(), key=lambda known: (_place(known[0]), -known[1]))),
        workers=[m.view() for m in sorted(fleet, key=_standing)[:WORKERS]],
        workers_total=len(fleet),
        stalled=[m.view() for m in fleet if m.state == "stalled"][:STALLED],
        disk_free=c.blobs.free_bytes(),
    )


def _place(state: str) -> int:
    """Where workers of a state stand among the others."""
    if state in _FIRST:
        return _FIRST.index(state)
    return len(_FIRST) + (1 + _LAST.index(state) if state in _LAST else 0)


def _standing(seen: Seen) -> tuple[int, str]:
    return _place(seen.state), seen.row.id


def _service(result: services.ServiceResult, *, interval: float, now: float) -> ServiceView:
    late = now - result.finished_at > max(OVERDUE_SECONDS, OVERDUE_BEATS * interval)
    return ServiceView(
        name=result.name,
        state="overdue" if late else "ok" if result.ok else "failed",
        message=result.message,
        finished_at=result.finished_at,
        seconds=result.seconds,
    )
