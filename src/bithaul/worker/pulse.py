"""The heartbeat: a thread that says what the worker does and brings back what the coordinator wants.

Progress in, orders out; both are small objects under one lock. A beat that fails is simply followed by the
next one. The thread also ships logs, so nothing else must remember to. It never touches the health beacon:
that it lives does not mean that work moves.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Literal

from structlog.typing import FilteringBoundLogger

from bithaul.errors import BithaulError, Gone, Unauthorized, Unavailable
from bithaul.exchange.messages import HeartbeatRequest, HeartbeatResponse
from bithaul.worker.link import Link
from bithaul.worker.logship import LogBuffer

Activity = Literal["idle", "calibrating", "downloading", "training", "uploading"]


@dataclass(frozen=True)
class Orders:
    """What the coordinator said last. `closed` is the fence of a lease that is no longer ours."""

    drain: bool = False
    paused: bool = False
    registered: bool = True
    closed: str | None = None


class Pulse:
    """Start it, tell it about progress, read `orders`, stop it."""

    def __init__(
        self,
        client: Link,
        buffer: LogBuffer,
        *,
        log: FilteringBoundLogger,
        seconds: float,
    ) -> None:
        self._client = client
        self._buffer = buffer
        self._log = log
        self.seconds = seconds
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = False
        self._missed = 0
        self._state = HeartbeatRequest()
        self._orders = Orders()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the beat it is in; waits at most two seconds."""
        self._ended = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    @property
    def orders(self) -> Orders:
        with self._lock:
            return self._orders

    @property
    def state(self) -> HeartbeatRequest:
        with self._lock:
            return self._state

    def begin(self, task: int, fence: str) -> None:
        with self._lock:
            self._state = HeartbeatRequest(task=task, fence=fence, activity="downloading")

    def report(
        self,
        activity: Activity,
        *,
        tokens: int | None = None,
        loss: float | None = None,
        tokens_per_second: float | None = None,
    ) -> None:
        """What the worker does now; figures that are not given stay as they were."""
        with self._lock:
            changes: dict[str, object] = {"activity": activity}
            if tokens is not None:
                changes["tokens"] = tokens
            if loss is not None and loss - loss == 0:
                changes["loss"] = loss
            if tokens_per_second is not None:
                changes["tokens_per_second"] = tokens_per_second
            self._state = self._state.model_copy(update=changes)

    def idle(self) -> None:
        with self._lock:
            self._state = HeartbeatRequest()

    def registered(self) -> None:
        with self._lock:
            self._orders = replace(self._orders, registered=True)

    def beat(self) -> None:
        """One heartbeat now. Raises `Gone`, `Unavailable` or another of the project's errors."""
        request = self.state
        try:
            answer = self._client.heartbeat(request)
        except Gone:
            with self._lock:
                self._orders = replace(self._orders, registered=False)
            raise
        self.obey(request, answer)

    def obey(self, request: HeartbeatRequest, answer: HeartbeatResponse) -> None:
        closed = request.fence if request.fence is not None and not answer.lease_open else None
        with self._lock:
            before = self._orders
            self._orders = Orders(answer.drain, answer.paused, True, closed)
        if answer.drain != before.drain:
            self._log.info("asked to drain" if answer.drain else "drain ended, taking work again")

    def step(self) -> None:
        """A beat and a batch of the log; whatever goes wrong, the next one follows."""
        try:
            self.beat()
            self._buffer.ship(self._client.logs)
            self._missed = 0
        except Gone:
            pass  # the main loop registers again
        except Unavailable as error:
            self._missed += 1
            if self._missed == 1:
                self._log.debug("heartbeat missed", reason=error.message)
        except Unauthorized as error:
            self._log.warning("heartbeat refused", reason=error.message)
        except BithaulError as error:
            self._log.warning("heartbeat refused", reason=error.message, code=error.error_code)

    def _run(self) -> None:
        while not self._ended:
            self.step()
            self._wake.wait(self.seconds)
