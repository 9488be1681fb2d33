"""The health beacon: a file whose age says how long nothing has moved.

It is touched only when work moves (a training step, a piece of a transfer) or the coordinator answered a
poll, so a worker that hangs goes stale even while its heartbeat thread lives. Containers check the age.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path


class Beacon:
    """Touches `path` at most once per `every` seconds; `None` switches it off."""

    def __init__(
        self, path: Path | None, *, every: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._every = every
        self._clock = clock
        self._last = float("-inf")

    def touch(self) -> None:
        now = self._clock()
        if self._path is not None and now - self._last >= self._every:
            with contextlib.suppress(OSError):  # a full disk must not end the work; the file just grows old
                self._path.touch()
            self._last = now

    def clear(self) -> None:
        """Remove the file: a worker that has ended is not healthy."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
