"""A wish to stop, safe to state from a signal handler and quick to hear from any thread.

`threading.Event` may deadlock when a handler sets it while the same thread is inside `wait`; a byte in a
socket pair cannot. After the wish, `grace` seconds remain for what is already finished to be delivered.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable


class Stop:
    """`requested` once somebody asked, `expired` when the grace period after that is over."""

    def __init__(self, grace: float = 10.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace = grace
        self._clock = clock
        self._requested_at: float | None = None
        self._reader, self._writer = socket.socketpair()

    def request(self) -> None:
        """Ask to stop. The second request ends the grace period."""
        if self._requested_at is None:
            self._requested_at = self._clock()
            self._writer.send(b"!")
        else:
            self._grace = 0.0

    @property
    def requested(self) -> bool:
        return self._requested_at is not None

    @property
    def expired(self) -> bool:
        return self._requested_at is not None and self._clock() - self._requested_at >= self._grace

    def wait(self, seconds: float, *, urgent: bool = False) -> bool:
        """Wait, at most until the wish; `urgent` waits go on until the grace period is over.

        True when the caller should give up.
        """
        if not self.requested:
            select.select([self._reader], [], [], max(0.0, seconds))
            if not urgent:
                return self.requested
            seconds = min(seconds, 0.5) if self.requested else 0.0
        if urgent and seconds > 0 and not self.expired:
            time.sleep(min(seconds, 0.5))
        return self.expired if urgent else True

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
