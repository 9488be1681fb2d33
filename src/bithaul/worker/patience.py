"""Asking again until there is a final answer, for as long as nobody wants the worker to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from structlog.typing import FilteringBoundLogger

from bithaul.worker.backoff import Backoff
from bithaul.worker.link import Later, Stopped
from bithaul.worker.stop import Stop

_SAY_AGAIN_SECONDS = 30.0
T = TypeVar("T")


class Patience:
    """Repeats what raises `Later` or breaks on its way; says so once in a while."""

    def __init__(
        self,
        url: str,
        *,
        stop: Stop,
        log: FilteringBoundLogger,
        backoff: Backoff,
        jitter: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._stop = stop
        self._log = log
        self._backoff = backoff
        self._jitter = jitter
        self._clock = clock

    def persist(
        self,
        what: str,
        ask: Callable[[], T],
        *,
        urgent: bool = False,
        advanced: Callable[[], bool] = lambda: False,
    ) -> T:
        """The final answer. Raises `Stopped` after a stop (`urgent`: after its grace period).

        Waits grow until `advanced` says that something has arrived.
        """
        attempt, said = 0, float("-inf")
        while True:
            try:
                answer = ask()
            except (Later, httpx2.TransportError) as error:
                if advanced():
                    attempt = 0
                asked = error.after if isinstance(error, Later) else None
                wait = self._backoff.wait(attempt, random=self._jitter(), asked=asked)
                now = self._clock()
                if now - said >= _SAY_AGAIN_SECONDS:
                    self._log.warning(
                        "coordinator does not answer, trying again",
                        url=self._url,
                        reason=str(error) or type(error).__name__,
                        seconds=round(wait, 1),
                    )
                    said = now
                attempt += 1
                if self._stop.wait(wait, urgent=urgent):
                    raise Stopped(f"{what} was not answered") from error
            else:
                if attempt:
                    self._log.info("coordinator answers again", url=self._url)
                return answer
