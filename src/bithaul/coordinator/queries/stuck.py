"""Leased tasks that get nowhere, and why; when each open lease last got further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, versions, work
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.work import LeaseRow
from bithaul.exchange.codecs import codec_named
from bithaul.rounds.sizing import transfer_seconds
from bithaul.rounds.stuck import LeaseFacts, patience, why_stuck


@dataclass(frozen=True)
class Stuck:
    lease: LeaseRow
    moved_at: float
    why: str  # a sentence that begins with "It"


class StuckView(BaseModel):
    model_config = ConfigDict(frozen=True)

    task: int
    worker: str
    why: str
    granted_at: float
    moved_at: float  # when it last got further
    share: float  # of its tokens, 0..1


class StuckTasksView(BaseModel):
    model_config = ConfigDict(frozen=True)

    now: float
    rows: list[StuckView]


def stuck_tasks(c: Coordinator) -> StuckTasksView:
    """By number of the task. Works without a run too."""
    now = c.clock.now()
    with c.database.read() as connection:
        run = runs.find_run(connection)
        found = [] if run is None else stuck_in(c, connection, run, now=now)
    return StuckTasksView(
        now=now,
        rows=[
            StuckView(
                task=stuck.lease.task_id,
                worker=stuck.lease.worker,
                why=stuck.why,
                granted_at=stuck.lease.granted_at,
                moved_at=stuck.moved_at,
                share=share_of(stuck.lease),
            )
            for stuck in found
        ],
    )


def stuck_in(c: Coordinator, connection: Connection, run: RunRow, *, now: float) -> list[Stuck]:
    held = work.open_leases(connection, run.id)
    if not held:
        return []
    moved = moved_at(c, held)
    transfer = transfer_seconds(
        weights_bytes=versions.newest_version(connection, run.id).size,
        payload_bytes=codec_named(run.codec).encoded_size(run.layout),
    )
    bound = patience(c.settings.heartbeat_seconds)
    found = []
    for lease in sorted(held, key=lambda lease: lease.task_id):
        facts = LeaseFacts(lease.granted_at, moved[lease.id], lease.soft_stop_seconds, transfer)
        why = why_stuck(facts, patience=bound, now=now)
        if why:
            found.append(Stuck(lease, moved[lease.id], why))
    return found


def moved_at(c: Coordinator, held: Sequence[LeaseRow]) -> Mapping[int, float]:
    """By lease: its newest word of more tokens, or the newest piece of its upload, or its beginning."""
    found = {}
    for lease in held:
        upload = c.uploads.written_at(lease.worker, task=lease.task_id, fence=lease.fence)
        found[lease.id] = max(lease.moved_at or lease.granted_at, upload or lease.granted_at)
    return found


def share_of(lease: LeaseRow) -> float:
    return min(1.0, lease.tokens / lease.expected_tokens) if lease.expected_tokens > 0 else 0.0
