"""Rows of workers, and what they say: telemetry points and log entries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, func, insert, null, select

from bithaul.coordinator.database.prepared import Prepared, insert_row, update_row
from bithaul.coordinator.database.tables import leases, logs, telemetry, workers
from bithaul.errors import Gone
from bithaul.exchange.messages import LogEntry
from bithaul.rounds.leases import LeaseState
from bithaul.rounds.scores import Fit
from bithaul.rounds.sizing import DEFAULT_SPEED, FIRST_SPEED, SLOWEST, speed_of
from bithaul.rounds.trust import Standing, Trust


@dataclass(frozen=True)
class WorkerRow:
    """`id` is the client id of the worker's credential; speeds are tokens per second."""

    id: str
    ready: bool
    drained: bool
    gone: bool
    capabilities: Mapping[str, Any] | None
    calibrated_speed: float
    speed: float
    activity: str
    failures: int
    rest_until: float
    standing: str
    trust_score: float
    trust_to_go: int
    trust_reason: str
    pinned: bool
    audits: bool  # its software knows audit tasks
    streak: int  # accepted reports since the last strike or doubt
    score: float  # average of its loss scores, -1 to 1
    scored: int  # how many are in it
    instance: str | None  # the state folder that has the identity; None: its software has none
    registered_at: float
    last_seen: float

    @property
    def trust(self) -> Trust:
        return Trust(
            standing=Standing(self.standing),
            score=self.trust_score,
            to_go=self.trust_to_go,
            until=self.rest_until,
            reason=self.trust_reason,
            pinned=self.pinned,
            fit=Fit(self.score, self.scored),
        )

    @property
    def planning_speed(self) -> float:
        return speed_of(measured=self.speed, calibrated=self.calibrated_speed)

    @property
    def state(self) -> str:
        return "gone" if self.gone else "drained" if self.drained else "active"

    def is_another(self, instance: str | None) -> bool:
        """Whether `instance` is not the one that has registered. Who says none is believed."""
        return instance is not None and self.instance is not None and instance != self.instance

    def may_work(self, now: float) -> bool:
        refused = self.drained or self.gone or self.standing == Standing.SET_ASIDE
        return self.ready and not refused and self.rest_until <= now


_RENAMED = {"trust_score": "trust"}
_COLUMNS = [workers.c[_RENAMED.get(field.name, field.name)] for field in fields(WorkerRow)]
_WORKER = Prepared(select(*_COLUMNS).where(workers.c.id == bindparam("worker")))
_WORKERS = Prepared(
    select(*(null() if c.name == "capabilities" else c for c in _COLUMNS)).order_by(workers.c.id)
)


_COUNTS = Prepared(
    select(func.count().filter(~workers.c.gone, ~workers.c.drained), func.count()).select_from(workers)
)
_MAY_WORK = (  # as `WorkerRow.may_work` says it
    workers.c.ready,
    ~workers.c.drained,
    ~workers.c.gone,
    workers.c.standing != Standing.SET_ASIDE,
    workers.c.rest_until <= bindparam("now"),
)
_PLANNED = case(  # as `speed_of` says it
    (workers.c.speed >= SLOWEST, workers.c.speed),
    (workers.c.speed > 0, SLOWEST),
    (workers.c.calibrated_speed > FIRST_SPEED, FIRST_SPEED),
    (workers.c.calibrated_speed >= SLOWEST, workers.c.calibrated_speed),
    (workers.c.calibrated_speed > 0, SLOWEST),
    else_=DEFAULT_SPEED,
)
_BUSY = workers.c.id.in_(select(leases.c.worker).where(leases.c.state == LeaseState.OPEN))
_AUDITORS = Prepared(
    select(workers.c.id, _PLANNED).where(*_MAY_WORK, workers.c.audits).order_by(workers.c.id)
)
_SPEED = Prepared(select(func.coalesce(func.sum(_PLANNED), 0.0)).where(*_MAY_WORK))
_IDLE_SPEED = Prepared(select(func.coalesce(func.sum(_PLANNED), 0.0)).where(*_MAY_WORK, ~_BUSY))


def fleet_speed(connection: Connection, *, now: float) -> float:
    """Planning speeds of all that may work, added up; tokens per second."""
    row = _SPEED.first(connection, now=now)
    return float(row[0]) if row else 0.0


def idle_speed(connection: Connection, *, now: float) -> float:
    """As `fleet_speed`, of those without a lease."""
    row = _IDLE_SPEED.first(connection, now=now)
    return float(row[0]) if row else 0.0


def auditors(connection: Connection, *, now: float) -> dict[str, float]:
    """Planning speeds of all that may work and know audit tasks, by worker; tokens per second."""
    return {worker: float(speed) for worker, speed in _AUDITORS.all(connection, now=now)}


def find_worker(connection: Connection, worker: str) -> WorkerRow | None:
    row = _WORKER.first(connection, worker=worker)
    return None if row is None else WorkerRow(*row)


def get_worker(connection: Connection, worker: str, *, instance: str | None = None) -> WorkerRow:
    """Raises `Gone` when it is not registered, or another instance than `instance` is."""
    found = find_worker(connection, worker)
    if found is None:
        raise Gone("This worker is not registered; POST /register first.")
    if found.is_another(instance):
        raise Gone("Another machine has registered with this key since; POST /register again.")
    return found


def list_workers(connection: Connection) -> list[WorkerRow]:
    """All of them, without capabilities: every merge reads this, and decoding them would be most of it."""
    return [WorkerRow(*row) for row in _WORKERS.all(connection)]


def count_workers(connection: Connection) -> tuple[int, int]:
    """How many are neither gone nor drained, and how many there are."""
    row = _COUNTS.first(connection)
    return (int(row[0]), int(row[1])) if row else (0, 0)


def insert_worker(connection: Connection, worker: str, *, now: float, gone: bool = False) -> WorkerRow:
    """A worker on probation. `gone`: it was not heard yet."""
    row: dict[str, Any] = {
        "id": worker,
        "ready": False,
        "drained": False,
        "gone": gone,
        "capabilities": None,
        "calibrated_speed": 0.0,
        "speed": 0.0,
        "activity": "idle",
        "failures": 0,
        "audits": False,
        "streak": 0,
        "registered_at": now,
        "last_seen": now,
        **trust_values(Trust()),
    }
    insert_row(connection, workers, row)
    return get_worker(connection, worker)


def trust_values(trust: Trust) -> dict[str, object]:
    """What `update_worker` is given to store it."""
    return {
        "standing": trust.standing,
        "trust": trust.score,
        "trust_to_go": trust.to_go,
        "trust_reason": trust.reason[:200],
        "rest_until": trust.until,
        "pinned": trust.pinned,
        "score": trust.fit.average,
        "scored": trust.fit.count,
    }


def see_worker(connection: Connection, row: WorkerRow, *, now: float) -> WorkerRow:
    """It was heard just now, so it is not gone."""
    update_worker(connection, row.id, last_seen=now, gone=False)
    return replace(row, last_seen=now, gone=False)


def update_worker(connection: Connection, worker: str, **values: object) -> None:
    update_row(connection, workers, {"id": worker}, values)


def insert_telemetry(
    connection: Connection,
    *,
    time: float,
    worker: str,
    task: int | None,
    tokens: int,
    tokens_per_second: float,
    loss: float | None,
) -> None:
    insert_row(
        connection,
        telemetry,
        {
            "time": time,
            "worker": worker,
            "task_id": task,
            "tokens": tokens,
            "tokens_per_second": tokens_per_second,
            "loss": loss,
        },
    )


def insert_logs(connection: Connection, worker: str, entries: Sequence[LogEntry], *, now: float) -> None:
    if entries:
        connection.execute(
            insert(logs),
            [
                {
                    "received_at": now,
                    "time": e.time,
                    "worker": worker,
                    "level": e.level,
                    "event": e.event,
                    "fields": json.dumps(e.fields),
                }
                for e in entries
            ],
        )


def count_logs(connection: Connection, worker: str, *, since: float) -> tuple[int, int]:
    """How many entries of a worker came in after that moment, and how many letters they have."""
    letters = func.coalesce(func.sum(func.length(logs.c.event) + func.length(logs.c.fields)), 0)
    query = select(func.count(), letters).select_from(logs)
    query = query.where(logs.c.worker == worker, logs.c.received_at > since)
    count, size = connection.execute(query).one()
    return int(count), int(size)


def prune_before(connection: Connection, *, telemetry_before: float, logs_before: float) -> tuple[int, int]:
    """Delete old telemetry points and log entries; how many of each."""
    points = connection.execute(delete(telemetry).where(telemetry.c.time < telemetry_before)).rowcount
    entries = connection.execute(delete(logs).where(logs.c.received_at < logs_before)).rowcount
    return points, entries


def telemetry_count(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(telemetry)).scalar_one())
