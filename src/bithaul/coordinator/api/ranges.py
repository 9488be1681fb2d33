"""The Range header, as a pure function: right bytes, the whole file, or 416 (RFC 9110, 14)."""

from __future__ import annotations

import re

from bithaul.coordinator.api.problems import RangeNotSatisfiable

MAX_RANGES = 16
_MAX_HEADER = 1024
_SPEC = re.compile(r"([0-9]{0,19})-([0-9]{0,19})")


def parse(header: str, size: int) -> list[tuple[int, int]] | None:
    """Half-open (start, end) pairs, sorted and merged; None when the header is to be ignored.

    Ignored (the whole file is sent): another unit, a malformed or inverted range. RangeNotSatisfiable: no
    range lies in the file, or there are more than MAX_RANGES.
    """
    unit, equals, specs = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    if len(header) > _MAX_HEADER or specs.count(",") >= MAX_RANGES:
        raise RangeNotSatisfiable(size)
    found: list[tuple[int, int]] = []
    for spec in specs.split(","):
        match = _SPEC.fullmatch(spec.strip())
        if match is None or not (match[1] or match[2]):
            return None
        start = int(match[1]) if match[1] else max(0, size - int(match[2]))
        end = int(match[2]) + 1 if match[1] and match[2] else size
        if match[1] and match[2] and start >= end:
            return None
        if start < min(end, size):
            found.append((start, min(end, size)))
    if not found:
        raise RangeNotSatisfiable(size)
    return _merged(found)


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ranges.sort()
    merged = [ranges[0]]
    for start, end in ranges[1:]:
        last_start, last_end = merged[-1]
        if start <= last_end:
            merged[-1] = (last_start, max(last_end, end))
        else:
            merged.append((start, end))
    return merged
