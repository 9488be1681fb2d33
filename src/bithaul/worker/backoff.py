"""How long to wait before trying again: exponential with jitter, or exactly what the other side asked for.

A retry library sleeps where no wish to stop can reach it; a worker must hear
SIGTERM in the middle of a long wait. Pure: the random number comes in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits of `first`, `first * factor`, ... up to `longest` seconds, each spread over [50 %, 100 %)."""

    first: float = 0.5
    factor: float = 2.0
    longest: float = 30.0

    def wait(self, attempt: int, *, random: float, asked: float | None = None) -> float:
        """Seconds to wait after failure number `attempt` (0 is the first); `random` lies in [0, 1).

        `asked` is a Retry-After of the other side: never less than that, and up to a quarter more.
        """
        if asked is not None:
            return min(asked, 3_600.0) * (1.0 + 0.25 * random)
        step = min(self.longest, self.first * self.factor ** min(attempt, 30))
        return step * (0.5 + 0.5 * random)
