"""The one clock and the one source of identifiers, as arguments. The simulator brings its own of both.

`now` is for rows (seconds since the epoch, microseconds kept), `monotonic` for durations. Nothing else in
the coordinator reads the time or makes a random number.
"""

from __future__ import annotations

import secrets
import time
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


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class SystemIds:
    """Identifiers from the operating system's random source."""

    def fence(self) -> str:
        return secrets.token_hex(16)

    def nonce(self) -> str:
        return secrets.token_hex(16)
