"""Log entries as an operator searches them: filters, pages by key, counts per level. Reads only.

A page is found by the primary key from where the last one ended, so the hundredth page of a million rows
costs what the first does. One level, of all workers or of one, has an index in the same order. Counting a
level stops at a bound: beyond it a person reads "more than". No index helps to find text, so it is looked
for in one stretch of entries at a time, and a person goes on from its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from bithaul.coordinator.database.tables import logs

LEVELS = ("debug", "info", "warning", "error")
MOST_COUNTED = 10_000  # rows of each level, where a count ends
MOST_SEARCHED = 100_000  # entries of one stretch: a third of a second


@dataclass(frozen=True)
class LogFilter:
    """`level` is the least severe one wanted; `text` is looked for in event and fields, without case."""

    worker: str = ""
    level: str = "debug"
    text: str = ""
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True)
class Stretch:
    """Entries with ids from `first` on and below `end`."""

    first: int
    end: int

    @classmethod
    def before(cls, end: int) -> Stretch:
        return cls(max(0, end - MOST_SEARCHED), end)

    @classmethod
    def after(cls, newest_known: int) -> Stretch:
        return cls(newest_known + 1, newest_known + 1 + MOST_SEARCHED)


@dataclass(frozen=True)
class LogRow:
    id: int
    received_at: float
    time: float
    worker: str
    level: str
    event: str
    fields: str  # JSON object


@dataclass(frozen=True)
class Span:
    """Ids that a filter's times leave: from `first` on and below `end`, None where they set no bound.

    Ids grow with the time of receipt, so what lies outside is not looked at.
    """

    first: int | None
    end: int | None


def span_of(connection: Connection, wanted: LogFilter) -> Span:
    return Span(_first_at(connection, wanted.since), _first_at(connection, wanted.until))


def _first_at(connection: Connection, moment: float | None) -> int | None:
    """The first id received at that time or later, one beyond the newest where there is none."""
    if moment is None:
        return None
    query = select(logs.c.id).where(logs.c.received_at >= moment)
    first = connection.execute(query.order_by(logs.c.received_at, logs.c.id).limit(1)).scalar_one_or_none()
    return newest_id(connection) + 1 if first is None else int(first)


def _matching(wanted: LogFilter, level: str | None, span: Span, within: Stretch | None) -> Select[Any]:
    """Entries of one `level`, None for any, within a span."""
    query = select(
        logs.c.id,
        logs.c.received_at,
        logs.c.time,
        logs.c.worker,
        logs.c.level,
        logs.c.event,
        logs.c.fields,
    )
    if within is not None:
        query = query.where(logs.c.id >= within.first, logs.c.id < within.end)
    if span.first is not None:
        query = query.where(logs.c.id >= span.first)
    if span.end is not None:
        query = query.where(logs.c.id < span.end)
    if wanted.worker:
        query = query.where(logs.c.worker == wanted.worker)
    if level is not None:
        query = query.where(logs.c.level == level)
    if wanted.text:
        query = query.where(
            logs.c.event.icontains(wanted.text, autoescape=True)
            | logs.c.fields.icontains(wanted.text, autoescape=True)
        )
    if wanted.since is not None:
        query = query.where(logs.c.received_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(logs.c.received_at < wanted.until)
    return query


def page(
    connection: Connection,
    wanted: LogFilter,
    *,
    count: int,
    before: int | None = None,
    after: int | None = None,
    within: Stretch | None = None,
) -> list[LogRow]:
    """Newest first: the rows just older than id `before`, or just newer than `after`.

    One level is read in the order of its index, so several are asked for one by one and laid together.
    """
    span = span_of(connection, wanted)
    levels: Sequence[str | None] = [None]
    if wanted.worker or wanted.level in LEVELS[1:]:
        levels = LEVELS[LEVELS.index(wanted.level) :]
    rows: list[LogRow] = []
    for level in levels:
        query = _matching(wanted, level, span, within).limit(count)
        if after is not None:
            query = query.where(logs.c.id > after).order_by(logs.c.id)
        else:
            query = query.order_by(logs.c.id.desc())
        if before is not None and after is None:
            query = query.where(logs.c.id < before)
        rows += [LogRow(*row) for row in connection.execute(query)]
    rows.sort(key=lambda row: row.id, reverse=after is None)
    return rows[:count] if after is None else rows[:count][::-1]


def level_counts(
    connection: Connection, wanted: LogFilter, *, within: Stretch | None = None
) -> Mapping[str, int]:
    """How many rows match apart from the level, by level; without a stretch up to `MOST_COUNTED` + 1."""
    span = span_of(connection, wanted)
    if within is not None:
        whole = _matching(wanted, None, span, within).order_by(logs.c.id.desc()).limit(MOST_SEARCHED)
        rows = whole.subquery()
        query = select(rows.c.level, func.count()).group_by(rows.c.level)
        found = {str(level): int(count) for level, count in connection.execute(query)}
        return {level: found.get(level, 0) for level in LEVELS}
    counts = {}
    for level in LEVELS:
        some = _matching(wanted, level, span, None).with_only_columns(logs.c.id).limit(MOST_COUNTED + 1)
        query = select(func.count()).select_from(some.subquery())
        counts[level] = int(connection.execute(query).scalar_one())
    return counts


def newest_id(connection: Connection) -> int:
    return int(connection.execute(select(func.max(logs.c.id))).scalar_one() or 0)


def newest_before(connection: Connection, end: int) -> LogRow | None:
    """The entry just older than id `end`, whatever it says."""
    found = page(connection, LogFilter(), count=1, before=end)
    return found[0] if found else None
