"""How values are written on pages: numbers, durations, times, states, sparklines. Pure, used as filters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from markupsafe import Markup

from bithaul.visible import visible

DASH = "–"
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
KINDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("training", "running", "ok", "accepted", "merged", "steady", "active", "current"), "good"
    ),
    **dict.fromkeys(
        ("uploading", "downloading", "calibrating", "leased", "info", "reported", "open"), "busy"
    ),
    **dict.fromkeys(
        ("stalled", "stuck", "warning", "overdue", "resting", "probation", "too_late", "stale", "expired"),
        "warn",
    ),
    **dict.fromkeys(("failed", "error", "rejected", "set aside", "disabled", "revoked", "discarded"), "bad"),
}
"""The kind of a state decides its colour and its shape; every other state is quiet."""


ENDINGS: Mapping[str, str] = {
    "expired": "its time ran out",
    "released": "given back by its worker",
    "failed": "its worker could not finish it",
    "revoked": "taken back",
    "repeated": "run again for the audit",
    "rejected": "refused",
    "stale": "too old to be merged",
    "compared": "compared, not merged",
    "too_late": "another report came first",
    "task_closed": "the task was given up",
    "rolled_back": "the run went back to an older version",
    "no_weight": "its worker's updates do not count now",
    "norm": "the update is too long",
    "update_too_long": "the update is too long",
    "copy": "the same update as another worker's",
    "non_finite": "not all of its numbers are finite",
    "foreign_task": "the update belongs to another task",
    "foreign_run": "the update belongs to another run",
    "foreign_base": "the update starts from another version",
    "layout_mismatch": "made for another parameter layout",
    "codec": "the update uses another codec",
    "wrong_length": "the update has a wrong size",
    "counts": "its numbers of examples, tokens and steps cannot be true",
    "out_of_memory": "its worker has not enough memory",
    "out_of_disk": "its worker's disk is full",
    "loss_not_finite": "no loss was a finite number",
    "weights_unavailable": "its worker could not get the weights",
    "shard_unavailable": "its worker could not get the examples",
    "not_started": "stopped before its first step",
    "stopped": "its worker was stopped",
    "internal_error": "its worker met an error of its own",
}
"""How a lease or a task ended, by the codes of verdicts, gates and workers."""
DAMAGED = ("frame_", "payload_")
"""So the codes of an update begin that cannot be read."""


def count(value: float | None) -> str:
    """1234567 as 1,234,567."""
    return DASH if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """Three significant digits with a suffix: 1.23M."""
    if value is None or not math.isfinite(value):
        return DASH
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:.{max(0, 2 - int(math.log10(abs(scaled))))}f}{unit}"
    return f"{value:,.0f}"


def loss(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"


def decimal(value: float | None, digits: int = 2) -> str:
    return DASH if value is None else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            whole = unit == "B" or abs(value) >= 100 or round(value, 1) == round(value)
            return f"{value:.0f} {unit}" if whole else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def duration(seconds: float | None) -> str:
    """The two largest units: 2 h 05 min."""
    if seconds is None:
        return DASH
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    whole = int(seconds)
    if seconds < HOUR:
        return f"{whole // 60} min {whole % 60:02} s"
    if seconds < DAY:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def _time(seconds: float, style: str, text: str) -> Markup:
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return Markup('<time datetime="{}" data-shown="{}" title="{}">{}</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z",
        style,
        moment.strftime("%Y-%m-%d %H:%M:%S UTC"),
        text,
    )


def ago(seconds: float | None, now: float) -> Markup | str:
    """`12 s ago`; the page's script keeps it true, the title says UTC."""
    if seconds is None:
        return DASH
    passed = max(0.0, now - seconds)
    text = "now" if passed < 1 else f"{int(passed)} s ago" if passed < MINUTE else f"{duration(passed)} ago"
    return _time(seconds, "ago", text)


def clock(seconds: float | None) -> Markup | str:
    """Hours, minutes, seconds; in the viewer's zone once the script has run."""
    if seconds is None:
        return DASH
    return _time(seconds, "clock", datetime.fromtimestamp(seconds, tz=UTC).strftime("%H:%M:%S UTC"))


def moment(seconds: float | None) -> Markup | str:
    """Date and time; in the viewer's zone once the script has run."""
    if seconds is None:
        return DASH
    return _time(seconds, "moment", datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M UTC"))


def log_time(seconds: float) -> Markup:
    """Date and time to the second."""
    return _time(seconds, "log", datetime.fromtimestamp(seconds, tz=UTC).strftime("%m-%d %H:%M:%S UTC"))


def minute(seconds: float | None) -> str:
    """As a form's field of a date and time takes it, in UTC; nothing for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M")


_BROWSERS = (("Edg/", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"))
_SYSTEMS = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("Linux", "Linux"),
)


def browser(agent: str) -> str:
    """`Firefox 145 on Windows`; what is no browser known here says it in its own words."""
    known = next(((mark, name) for mark, name in _BROWSERS if mark in agent), None)
    if known is None and "Safari/" in agent and "Version/" in agent:
        known = ("Version/", "Safari")
    system = next((name for mark, name in _SYSTEMS if mark in agent), None)
    if known is None or system is None or not agent.startswith("Mozilla/5.0 ("):
        return agent
    number = agent.partition(known[0])[2].partition(".")[0]
    return f"{known[1]} {number} on {system}" if number.isdecimal() else agent


def badge(state: str, text: str = "") -> Markup:
    """A state by shape, word and colour."""
    kind = KINDS.get(state, "quiet")
    shown = visible(text or state.replace("_", " "))  # a worker may have chosen it
    return Markup('<span class="badge {}">{}</span>').format(kind, shown)


def ending(reason: str) -> str:
    """A code in words; `rejected: norm` is both. What is a sentence already, or no code known here, stays."""
    if not reason:
        return DASH
    said = [_words_of(part) for part in reason.split(": ")]
    return ": ".join(dict.fromkeys(said))


def _words_of(code: str) -> str:
    if code.startswith(DAMAGED):
        return "the update is damaged"
    return ENDINGS.get(code, code if " " in code else code.replace("_", " "))


SPARK_WIDTH, SPARK_HEIGHT = 120, 28


def spark(values: Sequence[float | None], label: str = "") -> Markup:
    """A line over equal steps from zero up; gaps stay gaps. Shapes by attributes: no style, no script."""
    known = [v for v in values if v is not None]
    if not known:
        return Markup('<span class="muted">{}</span>').format(DASH)
    top = max(known) or 1.0
    step = SPARK_WIDTH / max(1, len(values) - 1)
    lines: list[list[str]] = [[]]
    for i, value in enumerate(values):
        if value is None:
            lines.append([])
        else:
            height = 2 + (SPARK_HEIGHT - 4) * (1 - value / top)
            lines[-1].append(f"{i * step:.1f},{height:.1f}")
    drawn = Markup("").join(
        Markup('<polyline points="{}"/>').format(" ".join(points))
        if len(points) > 1
        else Markup('<circle cx="{}" cy="{}" r="1.5"/>').format(*points[0].split(","))
        for points in lines
        if points
    )
    title = label or f"up to {count(top)}"
    box = f"0 0 {SPARK_WIDTH} {SPARK_HEIGHT}"
    return Markup(
        '<svg class="spark" viewBox="{}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(box, title, drawn)


def histogram(values: Sequence[float], label: str) -> Markup:
    """Bars of equal width, the tallest as high as the picture; dashed lines where rounding cuts (+-0.5)."""
    top = max(values, default=0.0) or 1.0
    drawn = Markup("").join(
        Markup('<rect class="hist" x="{}" y="{}" width="0.9" height="{}"/>').format(
            i, f"{40 * (1 - value / top):.2f}", f"{40 * value / top:.2f}"
        )
        for i, value in enumerate(values)
    )
    middle, cut = len(values) / 2, len(values) / 16
    lines = Markup('<line x1="{0}" x2="{0}" y1="0" y2="40"/><line x1="{1}" x2="{1}" y1="0" y2="40"/>').format(
        f"{middle - cut:.2f}", f"{middle + cut:.2f}"
    )
    return Markup(
        '<svg viewBox="0 0 {} 40" preserveAspectRatio="none" role="img" aria-label="{}">{}{}</svg>'
    ).format(len(values), label, drawn, lines)


def thirds(minus: float, zero: float, plus: float) -> Markup:
    """Shares of -1, 0 and +1 side by side."""
    label = f"-1: {percent(minus)}, 0: {percent(zero)}, +1: {percent(plus)}"
    parts = Markup("").join(
        Markup('<rect class="{}" x="{}" y="0" width="{}" height="10"/>').format(
            name, f"{100 * start:.2f}", f"{100 * share:.2f}"
        )
        for name, start, share in (("minus", 0.0, minus), ("zero", minus, zero), ("plus", minus + zero, plus))
    )
    return Markup(
        '<svg class="thirds" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">{}'
        "</svg>"
    ).format(label, parts)


def bar(share: float, label: str) -> Markup:
    """A progress bar of 0..1."""
    return Markup('<progress max="1" value="{}" aria-label="{}"></progress>').format(
        f"{min(1.0, max(0.0, share)):.4f}", label
    )


def spelled(value: object) -> object:
    """Words of others in one line of a list: line ends are spelled out too."""
    return visible(value) if isinstance(value, str) else value


FILTERS = {
    "visible": spelled,
    "count": count,
    "short": short,
    "loss": loss,
    "decimal": decimal,
    "percent": percent,
    "size": size,
    "duration": duration,
    "ago": ago,
    "clock": clock,
    "moment": moment,
    "log_time": log_time,
    "minute": minute,
    "browser": browser,
    "badge": badge,
    "ending": ending,
    "spark": spark,
    "bar": bar,
    "histogram": histogram,
    "thirds": thirds,
}
