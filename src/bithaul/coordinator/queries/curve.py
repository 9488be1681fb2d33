"""The curves of a run: losses, speed and staleness by version, thinned so that no spike disappears.

Every point shown is a real version. Where there are too many, each bucket of neighbours keeps those
that hold the lowest and the highest value of any series, so an outlier survives at any zoom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, select

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import history, runs
from bithaul.coordinator.database.history import VersionPoint
from bithaul.coordinator.identity.tables import audit

BUCKETS = 240
PROBE_LAG = 30  # held-out losses arrive for versions up to so many behind; a delta repeats them
MARKS = 200


class Mark(BaseModel):
    """An event on the time axis. `kind`: the verdict of an update that did not count, or "steered"."""

    model_config = ConfigDict(frozen=True)

    version: int | None  # of an update: the one it was trained on
    time: float
    kind: str
    text: str


class CurveView(BaseModel):
    """Columns of equal length, oldest first. Losses in nats per counted token, speed in tokens per second."""

    model_config = ConfigDict(frozen=True)

    version: list[int]
    time: list[float]
    tokens: list[int]
    train: list[float | None]
    low: list[float | None]
    high: list[float | None]
    heldout: list[float | None]
    speed: list[float | None]
    staleness: list[float]
    marks: list[Mark]
    shown: int
    total: int  # versions in the asked range
    cursor: int  # ask for what came after it
    whole: bool  # False: only what is new since the cursor


@dataclass(frozen=True)
class _Point:
    row: VersionPoint
    speed: float | None


def curve(
    c: Coordinator, *, after: int = 0, first: int = 0, last: int = 0, buckets: int = BUCKETS
) -> CurveView:
    """All versions; or those from `first` to `last`; or with `after` what is new since that cursor.

    Raises `NotFound` when no run was created.
    """
    start = max(0, after - PROBE_LAG - 1) if after else max(0, first - 2)
    with c.database.read() as connection:
        run = runs.get_run(connection)
        rows = history.version_series(connection, run.id, after=start)
        lost = [_mark(r) for r in history.rejections(connection, run.id, count=MARKS)]
        steered = _steered(connection)
    points = [_Point(row, _speed(before, row)) for before, row in zip([None, *rows], rows, strict=False)]
    if start:
        points = points[1:]  # it was read for the speed of its successor only
    if last:
        points = [p for p in points if first <= p.row.version <= last]
    kept = [points[i] for i in thin(points, buckets=buckets)]
    oldest = kept[0].row.time if kept else 0.0
    return CurveView(
        version=[p.row.version for p in kept],
        time=[p.row.time for p in kept],
        tokens=[p.row.tokens_total for p in kept],
        train=[p.row.train_loss for p in kept],
        low=[p.row.low for p in kept],
        high=[p.row.high for p in kept],
        heldout=[p.row.heldout_loss for p in kept],
        speed=[p.speed for p in kept],
        staleness=[p.row.staleness for p in kept],
        marks=[m for m in sorted([*lost[::-1], *steered[::-1]], key=lambda m: m.time) if m.time >= oldest],
        shown=len(kept),
        total=len(points),
        cursor=points[-1].row.version if points else after,
        whole=not after,
    )


_SERIES: Sequence[Callable[[_Point], float | None]] = (
    lambda p: p.row.train_loss,
    lambda p: p.row.low,
    lambda p: p.row.high,
    lambda p: p.row.heldout_loss,
    lambda p: p.speed,
    lambda p: p.row.staleness,
)


def thin(points: Sequence[_Point], *, buckets: int) -> list[int]:
    """Indices to show: the ends, and of each bucket the lowest and highest of every series."""
    if len(points) <= 2 * buckets:
        return list(range(len(points)))
    keep = {0, len(points) - 1}
    for number in range(buckets):
        bucket = range(number * len(points) // buckets, (number + 1) * len(points) // buckets)
        for value_of in _SERIES:
            known = [(value, i) for i in bucket if (value := value_of(points[i])) is not None]
            if known:
                keep |= {min(known)[1], max(known)[1]}
    return sorted(keep)


def _speed(before: VersionPoint | None, row: VersionPoint) -> float | None:
    """Tokens per second while this version was made, waiting included."""
    passed = row.time - before.time if before is not None else 0.0
    return row.tokens / passed if passed > 0 else None


KINDS: dict[str, Literal["rejected", "stale", "too late"]] = {
    "rejected": "rejected",
    "stale": "stale",
    "too_late": "too late",
}


STEERED = {
    "coordinator.start": "the coordinator started",
    "run.pause": "paused by {actor}",
    "run.resume": "resumed by {actor}",
    "run.rollback": "rolled back to version {subject} by {actor}",
}


def _steered(connection: Connection) -> list[Mark]:
    """What people and the coordinator did to the run, from the audit log."""
    query = select(audit).where(audit.c.action.in_(STEERED)).order_by(audit.c.id.desc()).limit(MARKS)
    return [
        Mark(
            version=None,
            time=row["time"],
            kind="steered",
            text=STEERED[row["action"]].format(actor=row["actor"], subject=row["subject"]),
        )
        for row in connection.execute(query).mappings()
    ]


def _mark(lost: history.Rejection) -> Mark:
    text = f"{lost.worker}, task {lost.task}: {KINDS.get(lost.verdict, lost.verdict)}"
    return Mark(
        version=lost.base_version,
        time=lost.time,
        kind=lost.verdict,
        text=f"{text} ({lost.code})" if lost.code else text,
    )
