"""Virtual time: one queue of events, and processes that may wait in the middle of ordinary blocking code.

Only one thing runs at a time and the order depends on times and on the order of asking, so the same seed
gives the same run. A process is a greenlet, which has a stack of its own in the same thread, and goes on from
one wait to the next; it is killed by an exception at its next wait, as a power cut would. No time passes but
here, and nothing here sleeps.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet

Action = Callable[[], None]


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
        """Kill every process that is left, so that what it holds is let go."""
        for process in list(self.processes):
            process.kill()
            process.resume()


class Process:
    """`body` on a stack of its own, from `start` until it returns or is killed; then `ended` is called."""

    def __init__(self, time: VirtualTime, body: Action, *, ended: Action) -> None:
        self._time = time
        self._body = body
        self._ended = ended
        self._greenlet = greenlet(self._run)
        self._next: Event | None = None
        self._dying = False
        self.alive = True

    def start(self) -> None:
        self._time.processes.append(self)
        self._next = self._time.after(0.0, self.resume)

    def wait(self, seconds: float) -> None:
        """Called by the process itself. Raises `Killed` when it was killed meanwhile."""
        self.check()
        self._next = self._time.after(max(0.0, seconds), self.resume)
        self._greenlet.parent.switch()
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
        """Let it go on until it waits or ends. Raises what broke it."""
        self._time.current = self
        self._greenlet.parent = getcurrent()
        try:
            self._greenlet.switch()
        finally:
            self._time.current = None
            if not self.alive:
                self._time.processes.remove(self)
        if not self.alive:
            self._ended()

    def _run(self) -> None:
        """What ends it otherwise than by `Killed` is raised where it was resumed."""
        try:
            if not self._dying:
                self._body()
        except Killed:
            pass
        finally:
            self.alive = False
