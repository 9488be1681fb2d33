"""What a person sees while a run trains: one live table on a terminal, one line every few seconds elsewhere.

Reads the coordinator's progress view over HTTP, so it shows what an operator anywhere would see.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from bithaul.coordinator.queries.progress import ProgressView
from bithaul.exchange.messages import RunState

PLAIN_EVERY_SECONDS = 5.0
QUIET_SECONDS = 15.0  # without an answer, or without a new version while coordinator or workers have problems
PATIENCE_SECONDS = 120.0  # without a new version while nobody knows of a problem
SAY_AGAIN_SECONDS = 30.0
_BAD_LEVELS = ("[warning", "[error")  # in a line of a worker's log
SPARKS = "▁▂▃▄▅▆▇█"


class Display(Protocol):
    """Where progress goes."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *unused: object) -> None: ...
    def show(self, view: ProgressView) -> None: ...
    def say(self, sentence: str) -> None: ...


def choose_display() -> Display:
    """A live table if standard error is a terminal, plain lines if not."""
    console = Console(stderr=True, highlight=False)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay()


class PlainDisplay:
    """One line per `PLAIN_EVERY_SECONDS` on standard error."""

    def __init__(self) -> None:
        self._last = 0.0

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *unused: object) -> None:
        return None

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    def show(self, view: ProgressView) -> None:
        now = time.monotonic()
        if now - self._last < PLAIN_EVERY_SECONDS:
            return
        self._last = now
        self.say(one_line(view))


class LiveDisplay:
    """A table redrawn in place; sentences scroll above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(self, *unused: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, sentence: str) -> None:
        self._console.print(sentence)

    def show(self, view: ProgressView) -> None:
        self._live.update(picture(view))


class Standstill:
    """Why nothing moves: one sentence after a while, and again every `SAY_AGAIN_SECONDS`."""

    def __init__(self, logs: Path, *, task_seconds: float, now: float) -> None:
        self._logs = logs
        self._patience = max(PATIENCE_SECONDS, 10 * task_seconds)
        self._answered = self._moved = now
        self._said = float("-inf")
        self._version = 0

    def sentence(
        self, view: ProgressView | None, now: float, *, silence: str, last_words: Callable[[], str]
    ) -> str | None:
        """None while all is well. `silence`: why there is no view; `last_words`: of the workers."""
        if view is not None:
            self._answered = now
            if view.version != self._version or view.state is RunState.PAUSED:
                self._version, self._moved = view.version, now
        still = now - self._moved
        if now - self._said < SAY_AGAIN_SECONDS:
            return None
        if view is None:
            if now - self._answered < QUIET_SECONDS:
                return None
            words = f"the coordinator has not answered for {now - self._answered:.0f} s ({silence})"
        elif view.problems and view.state is RunState.PAUSED:
            words = f"the run is paused: {' '.join(view.problems)}"
        elif view.problems and still >= QUIET_SECONDS:
            words = f"no new version for {still:.0f} s: {' '.join(view.problems)}"
        elif still >= QUIET_SECONDS:
            last = last_words()
            if still < self._patience and not any(level in last for level in _BAD_LEVELS):
                return None
            words = f"no new version for {still:.0f} s; {last}"
        else:
            return None
        self._said = now
        return f"{words.rstrip('.')}; see {self._logs}"


def one_line(view: ProgressView) -> str:
    """`42 %  v17  1.2M tokens  6,400 tok/s  train 1.23  held-out 1.31  eta 3:20`."""
    speed = sum(w.tokens_per_second for w in view.workers)
    parts = [
        f"{100 * view.progress:5.1f} %",
        f"v{view.version}",
        f"{view.tokens:,} tokens",
        f"{speed:,.0f} tok/s",
        f"train {_loss(_latest(view, 'train_loss'))}",
        f"held-out {_loss(_latest(view, 'heldout_loss'))}",
        f"eta {_duration(view.eta_seconds)}",
    ]
    return "  ".join(parts)


def picture(view: ProgressView) -> Group:
    """The live picture: a bar, the loss curves as sparklines, one row per worker."""
    bar = Progress(
        TextColumn("training"),
        BarColumn(40),
        TaskProgressColumn(),
        TextColumn(f"eta {_duration(view.eta_seconds)}"),
    )
    bar.add_task("training", total=1000, completed=round(1000 * view.progress))
    losses = Table.grid(padding=(0, 2))
    for label, key in (("train loss", "train_loss"), ("held-out loss", "heldout_loss")):
        series = [value for point in view.series if (value := getattr(point, key)) is not None]
        losses.add_row(label, _loss(series[-1] if series else None), sparkline(series, 48))
    workers = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (
        ("worker", "left"),
        ("state", "left"),
        ("tokens/s", "right"),
        ("updates", "right"),
        ("tokens", "right"),
    ):
        workers.add_column(name, justify="right" if justify == "right" else "left")
    for w in view.workers:
        workers.add_row(w.name, w.state, f"{w.tokens_per_second:,.0f}", f"{w.accepted}", f"{w.tokens:,}")
    head = Text(f"version {view.version}   {view.tokens:,} tokens   {view.state}", style="bold")
    return Group(head, bar, losses, workers)


def sparkline(values: list[float], width: int) -> str:
    """Values as block characters, newest right; wider series are cut into buckets and averaged."""
    if not values:
        return ""
    if len(values) > width:
        edges = [i * len(values) // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1))] for value in values)


def _latest(view: ProgressView, key: str) -> float | None:
    for point in reversed(view.series):
        value: float | None = getattr(point, key)
        if value is not None:
            return value
    return None


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
