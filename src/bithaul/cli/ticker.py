"""How far a measurement is: with rate and time left on a terminal, as a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.status import Status

_SECONDS = 10.0  # between two plain lines


class Ticker:
    """Call it with how many of `total` things are done. `clock` counts seconds."""

    def __init__(
        self,
        total: int,
        noun: str,
        *,
        console: Console,
        status: Status,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._noun = total, noun
        self._console, self._status, self._clock = console, status, clock
        self._started = self._told = clock()

    def __call__(self, done: int) -> None:
        now = self._clock()
        rate = done / max(now - self._started, 1e-9)
        left = (self._total - done) / rate if rate else 0.0
        line = f"{done:,} of {self._total:,} {self._noun}, {rate:,.0f} a second, {left:,.0f} s left"
        self._status.update(line)
        if not self._console.is_terminal and now - self._told >= _SECONDS:
            self._told = now
            self._console.print(line, soft_wrap=True)
