"""The one clock and the one source of identifiers, as arguments. The simulator brings its own of both.

`now` is for rows (seconds since the epoch, microseconds kept), `monotonic` for durations. Nothing else in
the coordinator reads the time or makes a random number.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


class Ids(Protocol):
    """Where identifiers that must not be guessed come from."""

    def fence(self) -> str:
        """128 random bits as 32 hexadecimal digits."""
        ...

    def nonce(self) -> str:
        """A name no other file or request has."""
        ...


BACK = 1.0  # seconds by which the machine's clock may lag before it is taken for set back


class SystemClock:
    """The machine's clock, but never backwards.

    Set back while the process runs, a deadline would move away by as much, and a round would wait hours for a
    machine that is gone. Time goes on from where it was until the clock has caught up or the process starts
    again. Set forward, leases end early and are granted again; what their workers still send is accepted.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._last = wall(), monotonic()

    def now(self) -> float:
        with self._lock:
            wall, monotonic = self._wall(), self._monotonic()
            before, then = self._last
            carried = before + (monotonic - then)
            now = carried if wall < carried - BACK else max(wall, before)
            self._last = now, monotonic
        return now

    def monotonic(self) -> float:
        return self._monotonic()


class SystemIds:
    """Identifiers from the operating system's random source."""

    def fence(self) -> str:
        return secrets.token_hex(16)

    def nonce(self) -> str:
        return secrets.token_hex(16)
