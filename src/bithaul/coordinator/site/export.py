"""Tables as files: CSV for spreadsheets, JSON for programs; all rows that match what the page asks for.

Moments are seconds since 1970 in JSON, as in the API, and ISO 8601 in UTC in CSV. A table may have a million
rows, so a file is written while it is read, page by page.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from bithaul.errors import NotFound
from bithaul.visible import visible

PAGE = 2_000  # rows read at a time
NEWEST = 10**15  # every number of a row is below
_MOMENTS = frozenset({"time", "last_seen", "since", "until", "deadline"})  # and what ends in _at
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Key = TypeVar("Key")
Rows = Sequence[BaseModel]


def in_pages(read: Callable[[Key], tuple[Rows, Key | None]], first: Key) -> Iterator[Rows]:
    """All pages of a table. `read` gives the rows behind a key and the key of the next ones, if any."""
    key: Key | None = first
    while key is not None:
        rows, key = read(key)
        yield rows


def export(pages: Iterable[Rows], *, name: str, kind: str) -> Response:
    """`kind` is csv or json. Nested values are JSON inside a CSV cell.

    The first page is read at once, so what is wrong with the question is an answer of its own.
    """
    if kind not in ("csv", "json"):
        raise NotFound("Tables are exported as .csv or .json.")
    rest = iter(pages)
    plain = _plain(itertools.chain([next(rest, [])], rest))
    return StreamingResponse(
        _json(plain) if kind == "json" else _csv(plain),
        media_type="application/json" if kind == "json" else "text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}.{kind}"'},
    )


def _plain(pages: Iterable[Rows]) -> Iterator[list[dict[str, object]]]:
    return ([row.model_dump(mode="json") for row in rows] for rows in pages)


def _json(pages: Iterable[list[dict[str, object]]]) -> Iterator[str]:
    begun = False
    for rows in filter(None, pages):
        yield ("," if begun else "[") + ",".join("\n" + json.dumps(row, ensure_ascii=False) for row in rows)
        begun = True
    yield "\n]" if begun else "[]"


def _csv(pages: Iterable[list[dict[str, object]]]) -> Iterator[str]:
    titled = False
    for rows in filter(None, pages):
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\r\n")
        if not titled:
            writer.writerow(rows[0])
        titled = True
        writer.writerows([_cell(name, value) for name, value in row.items()] for row in rows)
        yield stream.getvalue()


def _cell(name: str, value: object) -> object:
    """Text that a spreadsheet would run as a formula is marked as text, and stays on its line."""
    if isinstance(value, float) and (name in _MOMENTS or name.endswith("_at")):
        return _moment(value)
    if isinstance(value, dict | list):
        return visible(json.dumps(value, ensure_ascii=False))
    if isinstance(value, str):
        return ("'" if value.startswith(_FORMULA) else "") + visible(value)
    return value


def _moment(seconds: float) -> object:
    """ISO 8601 in UTC; a number that is no moment, of a clock that is out of its mind, stays what it is."""
    try:
        moment = datetime.fromtimestamp(seconds, tz=UTC)
    except (OverflowError, ValueError, OSError):
        return seconds
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
