"""Tables as files: CSV for spreadsheets, JSON for programs; the same rows that the page shows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from pydantic import BaseModel
from starlette.responses import Response

from bithaul.errors import NotFound
from bithaul.visible import visible

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export(rows: Sequence[BaseModel], *, name: str, kind: str) -> Response:
    """`kind` is csv or json. Nested values are JSON inside a CSV cell."""
    plain = [row.model_dump(mode="json") for row in rows]
    disposition = {"content-disposition": f'attachment; filename="{name}.{kind}"'}
    if kind == "json":
        text = json.dumps(plain, ensure_ascii=False, indent=1)
        return Response(text, media_type="application/json", headers=disposition)
    if kind != "csv":
        raise NotFound("Tables are exported as .csv or .json.")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    if plain:
        writer.writerow(plain[0])
        writer.writerows([_cell(value) for value in row.values()] for row in plain)
    return Response(stream.getvalue(), media_type="text/csv; charset=utf-8", headers=disposition)


def _cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula is marked as text, and stays on its line."""
    if isinstance(value, dict | list):
        return visible(json.dumps(value, ensure_ascii=False))
    if isinstance(value, str):
        return ("'" if value.startswith(_FORMULA) else "") + visible(value)
    return value
