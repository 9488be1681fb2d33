"""The fleet as an operator sees it: what each worker does now, how fast, and whether it gets on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, history, runs, versions, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.work import LeaseRow
from bithaul.coordinator.queries.stuck import moved_at, share_of
from bithaul.errors import NotFound
from bithaul.rounds.stuck import patience

SPARK_SECONDS = 1800.0
SPARK_BUCKETS = 30


class TaskNow(BaseModel):
    """The lease a worker holds."""

    model_config = ConfigDict(frozen=True)

    task: int
    base_version: int
    tokens: int
    expected_tokens: float
    share: float  # 0..1
    since: float
    deadline: float
    moved_at: float  # when it last got further


class MachineView(BaseModel):
    """`state`: training, uploading, downloading, calibrating, idle, stalled, resting, drained or gone."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: str
    why: str  # one sentence where the state needs one
    last_seen: float
    registered_at: float
    device: str
    path: str
    threads: int
    memory_bytes: int
    software: str
    calibrated: float  # tokens per second, as the worker measured itself
    speed: float  # over finished tasks
    spark: list[float | None]  # the last half hour
    task: TaskNow | None
    behind: int  # versions between its base and the newest
    accepted: int
    too_late: int
    stale: int
    rejected: int
    tokens: int
    share: float  # of all accepted tokens
    mean_staleness: float
    standing: str  # probation, steady, resting or set aside: how much its updates weigh, and why
    weight: float  # 0..1
    standing_why: str
    way_out: str  # what leads to full weight
    pinned: bool


class FleetView(BaseModel):
    model_config = ConfigDict(frozen=True)

    now: float
    machines: list[MachineView]

    @property
    def stalled(self) -> list[MachineView]:
        return [m for m in self.machines if m.state == "stalled"]


def machines(c: Coordinator, *, only: str | None = None) -> FleetView:
    """Works without a run too. Raises `NotFound` for `only` when it never registered."""
    now = c.clock.now()
    start = now - SPARK_SECONDS
    with c.database.read() as connection:
        rows = [w for w in fleet.list_workers(connection) if only in (None, w.id)]
        if only is not None and not rows:
            raise NotFound(f"There is no worker {only[:64]!r}.", code="unknown_worker")
        told = history.capabilities(connection)
        sparks = history.speed_buckets(
            connection, start=start, width=SPARK_SECONDS / SPARK_BUCKETS, count=SPARK_BUCKETS, worker=only
        )
        run = runs.find_run(connection)
        held: dict[str, LeaseRow] = {}
        moved: Mapping[int, float] = {}
        earned: Mapping[str, history.Account] = {}
        newest = 0
        if run is not None:
            held = {lease.worker: lease for lease in work.open_leases(connection, run.id)}
            moved = moved_at(c, connection, run.id, list(held.values()))
            earned = history.accounts(connection, run.id)
            newest = versions.newest_version(connection, run.id).version
    tokens = sum(account.tokens for account in earned.values())
    bound = patience(c.settings.heartbeat_seconds)
    return FleetView(
        now=now,
        machines=[
            _machine(
                row,
                lease=held.get(row.id),
                moved=moved,
                account=earned.get(row.id, history.Account()),
                told=told.get(row.id, {}),
                spark=sparks.get(row.id, [None] * SPARK_BUCKETS),
                newest=newest,
                all_tokens=tokens,
                patience=bound,
                now=now,
            )
            for row in rows
        ],
    )


def _machine(
    row: WorkerRow,
    *,
    lease: LeaseRow | None,
    moved: Mapping[int, float],
    account: history.Account,
    told: Mapping[str, Any],
    spark: Sequence[float | None],
    newest: int,
    all_tokens: int,
    patience: float,
    now: float,
) -> MachineView:
    task = None if lease is None else _task(lease, moved)
    state, why = state_of(row, task=task, patience=patience, now=now)
    trust = row.trust.at(now)
    return MachineView(
        standing=trust.standing,
        weight=trust.weight(now),
        standing_why=trust.reason,
        way_out=trust.way_out,
        pinned=trust.pinned,
        name=row.id,
        state=state,
        why=why,
        last_seen=row.last_seen,
        registered_at=row.registered_at,
        device=str(told.get("device", "")),
        path=str(told.get("path", "")),
        threads=int(told.get("threads", 0)),
        memory_bytes=int(told.get("memory_bytes", 0)),
        software=str(told.get("software", "")),
        calibrated=row.calibrated_speed,
        speed=row.speed,
        spark=list(spark),
        task=task,
        behind=0 if lease is None else max(0, newest - lease.base_version),
        accepted=account.accepted,
        too_late=account.too_late,
        stale=account.stale,
        rejected=account.rejected,
        tokens=account.tokens,
        share=account.tokens / all_tokens if all_tokens else 0.0,
        mean_staleness=account.mean_staleness,
    )


def state_of(row: WorkerRow, *, task: TaskNow | None, patience: float, now: float) -> tuple[str, str]:
    """The one word for a worker, and why where that is not plain. A stall hides behind no other word."""
    if row.gone:
        return "gone", "It was silent for too long; its task went to others."
    if task is not None and now - task.moved_at > patience:
        quiet = int(now - task.moved_at)
        return "stalled", f"It holds task {task.task} but has not got further for {quiet} s."
    if row.drained:
        return "drained", "It finishes what it has and gets no more work."
    if row.rest_until > now:
        return (
            "resting",
            f"It failed {row.failures} times in a row and rests {int(row.rest_until - now)} s more.",
        )
    if not row.ready:
        return "calibrating", "It has not measured itself yet."
    return row.activity, ""


def _task(lease: LeaseRow, moved: Mapping[int, float]) -> TaskNow:
    return TaskNow(
        task=lease.task_id,
        base_version=lease.base_version,
        tokens=lease.tokens,
        expected_tokens=lease.expected_tokens,
        share=share_of(lease),
        since=lease.granted_at,
        deadline=lease.deadline,
        moved_at=moved.get(lease.id, lease.granted_at),
    )
