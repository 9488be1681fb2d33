"""Log entries as an operator searches them: filters, pages by key, counts per level. Reads only.

A page is found by the primary key from where the last one ended, so the hundredth page of a million rows
costs what the first does. Counting stops at a bound: beyond it a person reads "more than". No index helps to
find text, so it is looked for in one stretch of entries at a time, and a person goes on from its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from bithaul.coordinator.database.tables import logs

LEVELS = ("debug", "info", "warning", "error")
MOST_COUNTED = 50_000  # newest matching rows that counts look at
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


def _matching(wanted: LogFilter, within: Stretch | None) -> Select[Any]:
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
    if wanted.worker:
        query = query.where(logs.c.worker == wanted.worker)
    if wanted.level in LEVELS[1:]:
        query = query.where(logs.c.level.in_(LEVELS[LEVELS.index(wanted.level) :]))
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
    """Newest first: the rows just older than id `before`, or just newer than `after`."""
    query = _matching(wanted, within).limit(count)
    if after is not None:
        rows = connection.execute(query.where(logs.c.id > after).order_by(logs.c.id))
        return [LogRow(*row) for row in rows][::-1]
    if before is not None:
        query = query.where(logs.c.id < before)
    return [LogRow(*row) for row in connection.execute(query.order_by(logs.c.id.desc()))]


def level_counts(
    connection: Connection, wanted: LogFilter, *, within: Stretch | None = None
) -> Mapping[str, int]:
    """Of the newest `MOST_COUNTED` rows that match apart from the level, how many have each."""
    everything = LogFilter(wanted.worker, "debug", wanted.text, wanted.since, wanted.until)
    newest = _matching(everything, within).order_by(logs.c.id.desc()).limit(MOST_COUNTED).subquery()
    query = select(newest.c.level, func.count()).group_by(newest.c.level)
    found = {str(level): int(count) for level, count in connection.execute(query)}
    return {level: found.get(level, 0) for level in LEVELS}


def newest_id(connection: Connection) -> int:
    return int(connection.execute(select(func.max(logs.c.id))).scalar_one() or 0)


def newest_before(connection: Connection, end: int) -> LogRow | None:
    """The entry just older than id `end`, whatever it says."""
    found = page(connection, LogFilter(), count=1, before=end)
    return found[0] if found else None
