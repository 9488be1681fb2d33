"""Background services: each runs at start and then on its interval, in its own thread, for itself.

A failure is logged, stored as the service's last result and tried again next time; it never stops another
service. `stop` returns when every thread has ended.
"""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator


class ServiceRunner:
    """Usage: `runner = ServiceRunner.standard(c); runner.start(); ...; runner.stop()`."""

    def __init__(self, c: Coordinator) -> None:
        self._c = c

    @classmethod
    def standard(cls, c: Coordinator) -> ServiceRunner:
        """Merger, sweeper, prune, retention and disk watch."""
        return cls(c)

    def start(self) -> None:
        raise NotImplementedError

    def stop(self, *, timeout: float = 30.0) -> bool:
        """Ask all to end and wait; False when one did not end in time."""
        raise NotImplementedError
