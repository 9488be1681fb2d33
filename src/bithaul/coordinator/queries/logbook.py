"""Log entries of all workers, also of those that are gone: one page, its neighbours, counts per level."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, logbook
from bithaul.coordinator.database.logbook import LEVELS, MOST_COUNTED, LogFilter, LogRow
from bithaul.errors import InvalidInput

PAGE = 200
MOST = 5000  # rows of one export
PERIODS: Mapping[str, float | None] = {"": None, "15m": 900.0, "1h": 3600.0, "1d": 86_400.0}


class LogLine(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: int
    time: float  # the worker's clock
    received_at: float
    worker: str
    level: str
    event: str
    fields: dict[str, object]


class LogView(BaseModel):
    """`lines` newest first. `older` and `newer`: ids to page from, None at an end."""

    model_config = ConfigDict(frozen=True)

    now: float
    lines: list[LogLine]
    counts: Mapping[str, int]
    counted_all: bool  # False: counts are of the newest rows only
    older: int | None
    newer: int | None
    newest: int  # id of the newest entry there is, whatever the filter: a live tail goes on from it
    workers: list[str]


def make_filter(
    c: Coordinator, *, worker: str = "", level: str = "", text: str = "", period: str = ""
) -> LogFilter:
    """From words of a query. Raises `InvalidInput` for an unknown level or period."""
    if level and level not in LEVELS:
        raise InvalidInput(f"Unknown level; known: {', '.join(LEVELS)}.", code="unknown_level")
    if period not in PERIODS:
        raise InvalidInput(
            f"Unknown period; known: {', '.join(filter(None, PERIODS))}.", code="unknown_period"
        )
    back = PERIODS[period]
    since = None if back is None else c.clock.now() - back
    return LogFilter(worker[:64], level or "debug", text[:200], since)


def log_page(
    c: Coordinator,
    wanted: LogFilter,
    *,
    before: int | None = None,
    after: int | None = None,
    count: int = PAGE,
) -> LogView:
    """One page by key. Without `before` and `after`: the newest entries."""
    with c.database.read() as connection:
        rows = logbook.page(connection, wanted, count=count, before=before, after=after)
        counts = logbook.level_counts(connection, wanted)
        newest = logbook.newest_id(connection)
        older = newer = None
        if rows:
            more = logbook.page(connection, wanted, count=1, before=rows[-1].id)
            fresh = logbook.page(connection, wanted, count=1, after=rows[0].id)
            older = rows[-1].id if more else None
            newer = rows[0].id if fresh else None
        names = [w.id for w in fleet.list_workers(connection)]
    return LogView(
        now=c.clock.now(),
        lines=[line_of(row) for row in rows],
        counts=counts,
        counted_all=sum(counts.values()) < MOST_COUNTED,
        older=older,
        newer=newer,
        newest=newest,
        workers=names,
    )


def log_tail(c: Coordinator, wanted: LogFilter, *, after: int, count: int = PAGE) -> list[LogLine]:
    """What came after entry `after`, newest first; of a flood the oldest `count`, the rest next time."""
    with c.database.read() as connection:
        return [line_of(row) for row in logbook.page(connection, wanted, count=count, after=after)]


def line_of(row: LogRow) -> LogLine:
    return LogLine(
        id=row.id,
        time=row.time,
        received_at=row.received_at,
        worker=row.worker,
        level=row.level,
        event=row.event,
        fields=json.loads(row.fields),
    )
