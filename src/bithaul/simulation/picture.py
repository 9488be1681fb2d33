"""A rehearsal as an SVG: one line for each machine, crashes of the coordinator, versions and the loss.

Drawn by hand with the standard library, so it costs no dependency and the same rehearsal gives the same
bytes. Colours tell how a lease ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LEFT, WIDTH, TOP = 60, 900, 40
CHART, GAP = 120, 34
COLOURS = {
    "merged": "#2f7d4f",
    "not merged": "#c98a1b",
    "expired": "#c43b3b",
    "released": "#8a8f98",
    "other": "#6d5fb0",
}


@dataclass(frozen=True)
class Segment:
    """One lease: the machine's number, seconds from the beginning, and how it ended (a key of COLOURS)."""

    machine: int
    begin: float
    end: float
    kind: str


@dataclass(frozen=True)
class Timeline:
    """What there is to see; times in seconds from the beginning."""

    title: str
    seconds: float
    machines: int
    segments: Sequence[Segment]
    crashes: Sequence[tuple[float, str]]
    losses: Sequence[tuple[float, float]]
    contributors: Sequence[tuple[float, int]]


def draw(timeline: Timeline) -> str:
    """The picture as the text of an SVG file."""
    row = max(2.0, min(12.0, 600.0 / max(1, timeline.machines)))
    lanes = row * timeline.machines
    height = round(TOP + lanes + GAP + CHART + GAP + CHART + 50)
    lanes_top, bars_top = TOP, TOP + lanes + GAP
    loss_top = bars_top + CHART + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" '
        'font-family="sans-serif" font-size="11" fill="#333">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="{LEFT}" y="16" font-size="13">'
        f"{escape(timeline.title)}</text>",
        *_legend(),
        *_lanes(timeline, lanes_top, row),
        *_bars(timeline, bars_top),
        *_loss(timeline, loss_top),
        *_crashes(timeline, lanes_top, loss_top + CHART),
        *_hours(timeline, loss_top + CHART),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _x(timeline: Timeline, seconds: float) -> float:
    return LEFT + WIDTH * min(max(seconds, 0.0), timeline.seconds) / max(timeline.seconds, 1.0)


def _legend() -> list[str]:
    parts, x = [], LEFT
    for kind, colour in COLOURS.items():
        parts.append(
            f'<rect x="{x}" y="23" width="10" height="8" fill="{colour}"/>'
            f'<text x="{x + 14}" y="31">{kind}</text>'
        )
        x += 100
    parts.append(f'<text x="{x}" y="31" fill="#000">| coordinator crash</text>')
    return parts


def _lanes(timeline: Timeline, top: float, row: float) -> list[str]:
    """All leases of one kind as one path: thousands of them stay a small file."""
    parts = [f'<text x="{LEFT - 8}" y="{top + 10}" text-anchor="end">machines</text>']
    for kind, colour in COLOURS.items():
        strokes = [
            f"M{_x(timeline, s.begin):.1f} {top + row * (s.machine + 0.5):.1f}H{_x(timeline, s.end):.1f}"
            for s in timeline.segments
            if s.kind == kind
        ]
        if strokes:
            parts.append(f'<path stroke="{colour}" stroke-width="{0.8 * row:.1f}" d="{"".join(strokes)}"/>')
    return parts


def _bars(timeline: Timeline, top: float) -> list[str]:
    most = max((n for _, n in timeline.contributors), default=0) or 1
    strokes = [
        f"M{_x(timeline, t):.1f} {top + CHART}V{top + CHART - CHART * n / most:.1f}"
        for t, n in timeline.contributors
        if n
    ]
    return [
        f'<text x="{LEFT - 8}" y="{top + 10}" text-anchor="end">{most}</text>',
        f'<text x="{LEFT}" y="{top - 6}">contributors to each version</text>',
        f'<path stroke="#3b6ea5" stroke-width="2" d="{"".join(strokes)}"/>',
        _axis(top),
    ]


def _loss(timeline: Timeline, top: float) -> list[str]:
    most = max((value for _, value in timeline.losses), default=1.0) or 1.0
    points = " ".join(
        f"{_x(timeline, t):.1f},{top + CHART - CHART * value / most:.1f}" for t, value in timeline.losses
    )
    return [
        f'<text x="{LEFT - 8}" y="{top + 10}" text-anchor="end">{most:.3g}</text>',
        f'<text x="{LEFT}" y="{top - 6}">toy loss of each version</text>',
        f'<polyline fill="none" stroke="#333" stroke-width="1.5" points="{points}"/>',
        _axis(top),
    ]


def _axis(top: float) -> str:
    return f'<path stroke="#999" fill="none" d="M{LEFT} {top}V{top + CHART}H{LEFT + WIDTH}"/>'


def _crashes(timeline: Timeline, top: float, bottom: float) -> list[str]:
    return [
        f'<path stroke="#000" stroke-width="1.2" d="M{_x(timeline, t):.1f} {top}V{bottom}">'
        f"<title>{escape(point)}</title></path>"
        for t, point in timeline.crashes
    ]


def _hours(timeline: Timeline, y: float) -> list[str]:
    hours = timeline.seconds / 3600.0
    step = next(s for s in (0.25, 0.5, 1, 2, 5, 10, 1e9) if hours / s <= 12)
    count = int(hours / step) if step < 1e9 else 0
    return [
        f'<text x="{_x(timeline, 3600.0 * step * i):.1f}" y="{y + 16}" text-anchor="middle">'
        f"{step * i:g} h</text>"
        for i in range(count + 1)
    ]
