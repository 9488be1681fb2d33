"""The fleet as an operator sees it: what each worker does now, how fast, and whether it gets on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, history, repetitions, runs, versions, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.work import LeaseRow
from bithaul.coordinator.queries.stuck import moved_at, share_of
from bithaul.errors import NotFound
from bithaul.rounds.stuck import patience

SPARK_SECONDS = 1800.0
SPARK_BUCKETS = 30
PAGE = 100


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
    repetition: bool  # of another worker's task, for the audit


class MachineNow(BaseModel):
    """`state`: training, uploading, downloading, calibrating, idle, stalled, resting, drained or gone."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: str
    why: str  # one sentence where the state needs one
    drained: bool  # gets no more work until resumed; `state` may be a graver word
    last_seen: float
    speed: float  # tokens per second over finished tasks
    task: TaskNow | None


class MachineView(MachineNow):
    """All that is told of one worker."""

    registered_at: float
    device: str
    path: str
    threads: int
    memory_bytes: int
    software: str
    calibrated: float  # tokens per second, as the worker measured itself
    spark: list[float | None]  # the last half hour
    behind: int  # versions between its base and the newest
    accepted: int
    clipped: int  # of the accepted ones, shortened by a gate
    too_late: int
    stale: int
    rejected: int
    compared: int  # judged and not merged
    repeated: int  # tasks of it that others repeated for the audit
    differed: int  # of them, those that came out differently
    repeated_by_it: int  # tasks of others that it repeated
    scored: int  # updates of it that have a loss score
    score: float | None  # their average, -1 to 1; None before the first
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


class FleetPageView(BaseModel):
    """One page of the workers that match. `next_after`: the name to go on from, None at the end."""

    model_config = ConfigDict(frozen=True)

    now: float
    rows: list[MachineView]
    states: list[str]  # that workers are in, for the filter
    matching: int
    total: int
    next_after: str | None


@dataclass(frozen=True)
class Seen:
    """What a worker does now, not yet put into a view: cheap enough for a thousand every five seconds."""

    row: WorkerRow
    lease: LeaseRow | None
    moved_at: float
    state: str
    why: str

    def view(self) -> MachineNow:
        return MachineNow(
            name=self.row.id,
            state=self.state,
            why=self.why,
            drained=self.row.drained,
            last_seen=self.row.last_seen,
            speed=self.row.speed,
            task=None if self.lease is None else _task(self.lease, self.moved_at),
        )


def seen_now(c: Coordinator) -> list[Seen]:
    """All workers by name, without their history. Works without a run too."""
    now = c.clock.now()
    with c.database.read() as connection:
        rows = fleet.list_workers(connection)
        run = runs.find_run(connection)
        held = {} if run is None else {x.worker: x for x in work.open_leases(connection, run.id)}
    return _seen(c, rows, held, now=now)


def _seen(
    c: Coordinator, rows: Sequence[WorkerRow], held: Mapping[str, LeaseRow], *, now: float
) -> list[Seen]:
    moved = moved_at(c, list(held.values()))
    bound = patience(c.settings.heartbeat_seconds)
    out = []
    for row in rows:
        lease = held.get(row.id)
        last = 0.0 if lease is None else moved[lease.id]
        task = None if lease is None else lease.task_id
        state, why = state_of(row, task=task, moved_at=last, patience=bound, now=now)
        out.append(Seen(row, lease, last, state, why))
    return out


AccountsOf = Callable[[Connection, int], Mapping[str, history.Account]]


def fleet_page(
    c: Coordinator,
    *,
    search: str = "",
    state: str = "",
    after: str = "",
    count: int = PAGE,
    accounts: AccountsOf = history.accounts,
) -> FleetPageView:
    """Workers whose name, device or software has `search` in it and that are in `state`, by name."""
    fleet_now = seen_now(c)
    text = search.lower()
    with c.database.read() as connection:
        told = history.capabilities(connection) if text else {}
    names = [
        seen.row.id
        for seen in fleet_now
        if (not state or seen.state == state) and (not text or text in _words(seen, told))
    ]
    below = [name for name in names if name > after]
    shown = below[:count]
    return FleetPageView(
        now=c.clock.now(),
        rows=machines(c, only=set(shown), accounts=accounts).machines if shown else [],
        states=sorted({seen.state for seen in fleet_now}),
        matching=len(names),
        total=len(fleet_now),
        next_after=shown[-1] if len(below) > count else None,
    )


def _words(seen: Seen, told: Mapping[str, Mapping[str, Any]]) -> str:
    able = told.get(seen.row.id, {})
    return f"{seen.row.id} {able.get('device', '')} {able.get('software', '')}".lower()


def machines(
    c: Coordinator, *, only: Collection[str] | None = None, accounts: AccountsOf = history.accounts
) -> FleetView:
    """Works without a run too. Raises `NotFound` when none of `only` has ever registered."""
    now = c.clock.now()
    start = now - SPARK_SECONDS
    with c.database.read() as connection:
        rows = [w for w in fleet.list_workers(connection) if only is None or w.id in only]
        if only is not None and not rows:
            raise NotFound(f"There is no worker {', '.join(only)[:64]!r}.", code="unknown_worker")
        told = history.capabilities(connection)
        sparks = history.speed_buckets(
            connection, start=start, width=SPARK_SECONDS / SPARK_BUCKETS, count=SPARK_BUCKETS, only=only
        )
        run = runs.find_run(connection)
        held: dict[str, LeaseRow] = {}
        earned: Mapping[str, history.Account] = {}
        audits: Mapping[str, repetitions.Counts] = {}
        newest = 0
        if run is not None:
            held = {lease.worker: lease for lease in work.open_leases(connection, run.id)}
            earned = accounts(connection, run.id)
            audits = repetitions.counts(connection, run.id)
            newest = versions.newest_version(connection, run.id).version
    tokens = sum(account.tokens for account in earned.values())
    return FleetView(
        now=now,
        machines=[
            _machine(
                seen,
                account=earned.get(seen.row.id, history.Account()),
                audit=audits.get(seen.row.id, repetitions.Counts()),
                told=told.get(seen.row.id, {}),
                spark=sparks.get(seen.row.id, [None] * SPARK_BUCKETS),
                newest=newest,
                all_tokens=tokens,
                now=now,
            )
            for seen in _seen(c, rows, held, now=now)
        ],
    )


def _machine(
    seen: Seen,
    *,
    account: history.Account,
    audit: repetitions.Counts,
    told: Mapping[str, Any],
    spark: Sequence[float | None],
    newest: int,
    all_tokens: int,
    now: float,
) -> MachineView:
    row, lease = seen.row, seen.lease
    trust = row.trust.at(now)
    return MachineView(
        standing=trust.standing,
        weight=trust.weight(now),
        standing_why=trust.why,
        way_out=trust.way_out,
        pinned=trust.pinned,
        name=row.id,
        state=seen.state,
        why=seen.why,
        drained=row.drained,
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
        task=None if lease is None else _task(lease, seen.moved_at),
        behind=0 if lease is None else max(0, newest - lease.base_version),
        accepted=account.accepted,
        clipped=account.clipped,
        too_late=account.too_late,
        stale=account.stale,
        rejected=account.rejected,
        compared=account.compared,
        repeated=audit.repeated,
        differed=audit.differed,
        repeated_by_it=audit.made,
        scored=trust.fit.count,
        score=trust.fit.average if trust.fit.count else None,
        tokens=account.tokens,
        share=account.tokens / all_tokens if all_tokens else 0.0,
        mean_staleness=account.mean_staleness,
    )


def state_of(
    row: WorkerRow, *, task: int | None, moved_at: float, patience: float, now: float
) -> tuple[str, str]:
    """The one word for a worker, and why where that is not plain. A stall hides behind no other word.

    `moved_at`: when the task that it holds last got further.
    """
    if row.gone:
        return "gone", "It was silent for too long or was marked gone; its task went to others."
    if task is not None and now - moved_at > patience:
        quiet = int(now - moved_at)
        return "stalled", f"It holds task {task} but has not got further for {quiet} s."
    if row.drained:
        return "drained", "It finishes what it has and gets no more work."
    if row.rest_until > now:
        return (
            "resting",
            f"It failed {row.failures} times in a row and rests {int(row.rest_until - now)} s more.",
        )
    if not row.ready:
        return "calibrating", "It has not measured itself yet."
    if row.activity == "idle" and task is not None:
        return "training", ""  # its last word is older than the task
    return row.activity, ""


def _task(lease: LeaseRow, moved_at: float) -> TaskNow:
    return TaskNow(
        task=lease.task_id,
        base_version=lease.base_version,
        tokens=lease.tokens,
        expected_tokens=lease.expected_tokens,
        share=share_of(lease),
        since=lease.granted_at,
        deadline=lease.deadline,
        moved_at=moved_at,
        repetition=lease.repeats is not None,
    )
