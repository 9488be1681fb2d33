"""Log entries of all workers, also of those that are gone: one page, its neighbours, counts per level."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, logbook
from bithaul.coordinator.database.logbook import LEVELS, MOST_COUNTED, LogFilter, LogRow, Span, Stretch
from bithaul.errors import InvalidInput

PAGE = 200
TAIL = 1_000  # rows of one answer to a live tail
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


class TailView(BaseModel):
    """What came since an entry, newest first. `newest`: go on from there; `more`: there is more already."""

    model_config = ConfigDict(frozen=True)

    lines: list[LogLine]
    newest: int
    more: bool


class LogView(BaseModel):
    """`lines` newest first. `older` and `newer`: ids to page from, None at an end.

    Where text is looked for, one view covers a stretch of entries: `searched_to` is the time down to which it
    looked, None when it looked at all there are. Counts are of that stretch, and `older` goes on below it.
    """

    model_config = ConfigDict(frozen=True)

    now: float
    lines: list[LogLine]
    counts: Mapping[str, int]
    more: list[str]  # levels of which there are more than was counted
    searched_to: float | None
    older: int | None
    newer: int | None
    newest: int  # id of the newest entry there is, whatever the filter: a live tail goes on from it
    workers: list[str]


def make_filter(
    c: Coordinator,
    *,
    worker: str = "",
    level: str = "",
    text: str = "",
    period: str = "",
    since: str = "",
    until: str = "",
) -> LogFilter:
    """From words of a query. Raises `InvalidInput` for an unknown level or period and for what is no time.

    `since` is the first moment wanted and `until` the first one that is not, as in 2026-11-28T05:30Z; UTC
    where no zone is said.
    """
    if level and level not in LEVELS:
        raise InvalidInput(f"Unknown level; known: {', '.join(LEVELS)}.", code="unknown_level")
    if period not in PERIODS:
        raise InvalidInput(
            f"Unknown period; known: {', '.join(filter(None, PERIODS))}.", code="unknown_period"
        )
    back = PERIODS[period]
    starts = [t for t in (_moment(since), None if back is None else c.clock.now() - back) if t is not None]
    return LogFilter(
        worker[:64], level or "debug", text[:200], max(starts) if starts else None, _moment(until)
    )


def _moment(text: str) -> float | None:
    """Seconds since the epoch; None for the empty text."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text[:40])
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidInput(
            "A time is written as 2026-11-28T05:30, in UTC unless a zone follows.", code="invalid_time"
        ) from None


def log_rows(c: Coordinator, wanted: LogFilter, *, before: int | None = None, count: int) -> list[LogLine]:
    """The newest entries, or those older than `before`; text is looked for in all there are."""
    with c.database.read() as connection:
        return [line_of(row) for row in logbook.page(connection, wanted, count=count, before=before)]


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
        newest = logbook.newest_id(connection)
        span = logbook.span_of(connection, wanted)
        last = newest if span.end is None else min(newest, span.end - 1)
        within = _stretch(wanted, last, before=before, after=after)
        rows = logbook.page(connection, wanted, count=count, before=before, after=after, within=within)
        counts = logbook.level_counts(connection, wanted, within=within)
        more = [level for level, number in counts.items() if within is None and number > MOST_COUNTED]
        searched_to = None
        if within is None:
            older, newer = _neighbours(connection, wanted, rows)
        else:
            whole = len(rows) < count  # the stretch was looked through to its end
            older = rows[-1].id if rows and (after is not None or not whole) else None
            newer = None
            if before is not None or after is not None:
                top = rows[0].id if rows and (before is not None or not whole) else within.end - 1
                newer = top if top < last else None
            below = _below(connection, within, span)
            if below is not None:
                searched_to, older = below.received_at, older or within.first
        names = [w.id for w in fleet.list_workers(connection)]
    return LogView(
        now=c.clock.now(),
        lines=[line_of(row) for row in rows],
        counts={level: number if level not in more else MOST_COUNTED for level, number in counts.items()},
        more=more,
        searched_to=searched_to,
        older=older,
        newer=newer,
        newest=newest,
        workers=names,
    )


def _below(connection: Connection, within: Stretch, span: Span) -> LogRow | None:
    """The newest entry older than a stretch, if the filter's times leave any there."""
    if span.first is not None and within.first <= span.first:
        return None
    return logbook.newest_before(connection, within.first)


def _stretch(wanted: LogFilter, newest: int, *, before: int | None, after: int | None) -> Stretch | None:
    """What one view looks through, None for everything: without text the key finds a page at once."""
    if not wanted.text:
        return None
    if after is not None:
        return Stretch.after(after)
    return Stretch.before(newest + 1 if before is None else before)


def _neighbours(
    connection: Connection, wanted: LogFilter, rows: list[LogRow]
) -> tuple[int | None, int | None]:
    """Ids to page from towards the older and the newer side."""
    if not rows:
        return None, None
    more = logbook.page(connection, wanted, count=1, before=rows[-1].id)
    fresh = logbook.page(connection, wanted, count=1, after=rows[0].id)
    return (rows[-1].id if more else None), (rows[0].id if fresh else None)


def log_tail(c: Coordinator, wanted: LogFilter, *, after: int, count: int = TAIL) -> TailView:
    """What came after entry `after`; of a flood the oldest `count`, the rest next time.

    What was looked through without finding anything is not looked through again.
    """
    with c.database.read() as connection:
        looked = max(after, logbook.newest_id(connection))
        rows = logbook.page(connection, wanted, count=count, after=after)
    more = len(rows) == count
    return TailView(
        lines=[line_of(row) for row in rows],
        newest=rows[0].id if more else looked,
        more=more,
    )


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
