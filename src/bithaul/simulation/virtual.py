"""Virtual time: one queue of events, and processes that may wait in the middle of ordinary blocking code.

Only one thing runs at a time and the order depends on times and on the order of asking, so the same seed
gives the same run. A process is a thread that holds the baton from one wait to the next; it is killed by an
exception at its next wait, as a power cut would. No time passes but here, and nothing here sleeps.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

Action = Callable[[], None]
_STACK_BYTES = 512 * 1024


class Killed(BaseException):
    """Sudden death of a simulated process; not an Exception, so that nothing may swallow it."""


@dataclass(order=True)
class Event:
    """Something that will happen; `cancel` it before."""

    when: float
    order: int
    action: Action = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class VirtualTime:
    """The clock of the coordinator (see `coordinator.clock.Clock`) and the queue of events."""

    def __init__(self, start: float) -> None:
        self._now = start
        self._queue: list[Event] = []
        self._asked = 0
        self.events = 0
        self.current: Process | None = None
        self.baton = threading.Lock()
        self.baton.acquire()
        self.processes: list[Process] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def at(self, when: float, action: Action) -> Event:
        """Do it then; a time that has passed is now."""
        self._asked += 1
        event = Event(max(when, self._now), self._asked, action)
        heapq.heappush(self._queue, event)
        return event

    def after(self, seconds: float, action: Action) -> Event:
        return self.at(self._now + seconds, action)

    def run(self, until: float, *, after_each: Action = lambda: None) -> None:
        """Let everything happen that is due before `until`."""
        while self._queue and self._queue[0].when <= until:
            event = heapq.heappop(self._queue)
            if event.cancelled:
                continue
            self._now = event.when
            self.events += 1
            event.action()
            after_each()
        self._now = max(self._now, until)

    def wait(self, seconds: float) -> None:
        """Let time pass for the process that calls; outside of one nothing waits."""
        if self.current is not None:
            self.current.wait(seconds)

    def end(self) -> None:
        """Kill every process that is left, so that its thread ends."""
        for process in list(self.processes):
            process.kill()
            process.resume()


class Process:
    """`body` on a thread of its own, from `start` until it returns or is killed; then `ended` is called."""

    def __init__(self, time: VirtualTime, name: str, body: Action, *, ended: Action) -> None:
        self._time = time
        self._body = body
        self._ended = ended
        self._gate = threading.Lock()
        self._gate.acquire()
        self._next: Event | None = None
        self._dying = False
        self._broken: BaseException | None = None
        self.alive = True
        with _small_stack():
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def start(self) -> None:
        self._time.processes.append(self)
        self._next = self._time.after(0.0, self.resume)

    def wait(self, seconds: float) -> None:
        """Called by the process itself. Raises `Killed` when it was killed meanwhile."""
        self.check()
        self._next = self._time.after(max(0.0, seconds), self.resume)
        self._time.baton.release()
        self._gate.acquire()
        self.check()

    def check(self) -> None:
        if self._dying:
            raise Killed

    def kill(self) -> None:
        """It dies at once, or, if it is the one that runs, at its next wait."""
        if not self.alive or self._dying:
            return
        self._dying = True
        if self._time.current is not self:
            if self._next is not None:
                self._next.cancel()
            self._next = self._time.after(0.0, self.resume)

    def resume(self) -> None:
        """Hand the baton over until the process waits or ends. Raises what broke it."""
        self._time.current = self
        self._gate.release()
        self._time.baton.acquire()
        self._time.current = None
        if self.alive:
            return
        self._thread.join()
        self._time.processes.remove(self)
        if self._broken is not None:
            raise self._broken
        self._ended()

    def _run(self) -> None:
        self._gate.acquire()
        try:
            if not self._dying:
                self._body()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the thread that resumed this one
            self._broken = error
        finally:
            self.alive = False
            self._time.baton.release()


class _small_stack:
    """Hundreds of threads with the usual eight megabytes would count against an address-space limit."""

    def __enter__(self) -> None:
        self._old = threading.stack_size(_STACK_BYTES)

    def __exit__(self, *unused: object) -> None:
        threading.stack_size(self._old)
