"""A simulated computer: the real worker on it, its speed and line, and what happens to it.

Of its state folder what was synced survives its deaths, as on a disk. A killed worker is started again by its
owner some time later, with the same folder; a new process knows nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import structlog
from structlog.typing import FilteringBoundLogger

from bithaul.exchange.messages import Receipt, RunDescription
from bithaul.simulation.disk import ForgetfulDisk
from bithaul.simulation.faults import Fault, Faults, Kind, Moment, Where
from bithaul.simulation.house import House
from bithaul.simulation.link import Line, SimulatedLink
from bithaul.simulation.subject import Body, Subject, session_of
from bithaul.simulation.virtual import Event, Process, VirtualTime
from bithaul.training.calibrate import Calibration
from bithaul.worker.backoff import Backoff
from bithaul.worker.logship import LogBuffer
from bithaul.worker.loop import Worker
from bithaul.worker.patience import Patience
from bithaul.worker.pulse import Pulse
from bithaul.worker.session import Session
from bithaul.worker.settings import WorkerSettings
from bithaul.worker.stop import Stop
from bithaul.worker.tools import CrashPoints, Tools

LONGEST_WAIT = 300.0  # seconds between tries while the coordinator is away
IN_TRAINING = (Kind.SIGN_FLIP, Kind.NOISE, Kind.HALF)


@dataclass(frozen=True)
class Spec:
    """What a machine can do; `speed` in tokens per second. `poison`: in every update, see `Scenario`."""

    name: str
    speed: float
    line: Line
    poison: Kind | None = None


class VirtualStop(Stop):
    """A wish to stop that is heard in virtual time."""

    def __init__(self, time: VirtualTime, *, grace: float = 600.0) -> None:
        self._time = time
        self._grace = grace
        self._clock = time.now
        self._requested_at = None

    def request(self) -> None:
        if self._requested_at is None:
            self._requested_at = self._time.now()

    def wait(self, seconds: float, *, urgent: bool = False) -> bool:
        if not self.requested or (urgent and not self.expired):
            self._time.wait(seconds)
        return self.expired if urgent else self.requested

    def close(self) -> None:
        """There is nothing to close."""


class VirtualPulse(Pulse):
    """The heartbeat as events instead of a thread."""

    time: VirtualTime  # set by the machine that makes it
    lives: Callable[[], bool]

    def start(self) -> None:
        self._event: Event | None = self.time.after(self.seconds, self._tick)

    def stop(self) -> None:
        self._ended = True
        event = getattr(self, "_event", None)
        if event is not None:
            event.cancel()

    def _tick(self) -> None:
        if self._ended:
            return
        if self.lives():
            self.step()
        self._event = self.time.after(self.seconds, self._tick)


class Machine:
    """`start` switches it on; `stop` asks its worker to end; `heard` is told every receipt."""

    def __init__(
        self,
        spec: Spec,
        folder: Path,
        house: House,
        time: VirtualTime,
        faults: Faults,
        *,
        disk: ForgetfulDisk,
        subject: Subject,
        random: Random,
        heard: Callable[[str, Receipt], None],
    ) -> None:
        self.spec = spec
        self._folder = folder
        self._house = house
        self._time = time
        self._faults = faults
        self._disk = disk
        self._subject = subject
        self._random = random
        self._heard = heard
        self._skew = 0.0
        self._asleep = False
        self._process: Process | None = None
        self._stop: VirtualStop | None = None
        self._back: Event | None = None
        self._pulse: Pulse | None = None
        self._dark = False  # it dies of a power cut
        self.wanted = False
        self.deaths = 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    def start(self) -> None:
        self.wanted = True
        if self.alive:
            return
        self._asleep = False
        self._stop = VirtualStop(self._time)
        worker = self._worker(self._stop)
        self._process = Process(self._time, worker, ended=self._ended)
        self._process.start()

    def stop(self) -> None:
        """Its owner wants it back: deliver what is finished and end."""
        self.wanted = False
        if self._stop is not None:
            self._stop.request()

    def die(self, back_after: float) -> None:
        """A power cut. Whoever owns it switches it on again."""
        if not self.alive:
            return
        self.deaths += 1
        self._dark = True
        assert self._process is not None
        self._process.kill()
        if self._back is None:
            self._back = self._time.after(back_after, self._again)

    def _again(self) -> None:
        self._back = None
        if self.wanted:
            self.start()

    def _ended(self) -> None:
        """It ended by itself or was killed; `die` has seen to its return."""
        if self._dark:
            self._disk.cut(self._folder, keep_names=self.deaths % 2 == 0)
            self._dark = False

    def _worker(self, stop: VirtualStop) -> Callable[[], None]:
        log, buffer = _silent(), LogBuffer()
        patience = Patience(
            "virtual:",
            stop=stop,
            log=log,
            backoff=Backoff(first=1.0, longest=LONGEST_WAIT),
            jitter=self._random.random,
            clock=self._time.now,
        )
        link = SimulatedLink(
            self.spec.name,
            self._house,
            self._time,
            self._faults,
            line=self.spec.line,
            poison=self.spec.poison,
            patience=patience,
            die=self.die,
            heard=self._heard,
        )
        settings = WorkerSettings(url="virtual:", client_id=self.spec.name, state_dir=self._folder)
        tools = self._tools()

        def body() -> None:
            Worker(settings, link, stop=stop, log=log, buffer=buffer, tools=tools).run()

        return body

    def _tools(self) -> Tools:
        def pulse(*args: Any, **options: Any) -> Pulse:  # the protocol's signature is the class's own
            made = VirtualPulse(*args, **options)
            mine = self._process
            self._pulse = made
            made.time = self._time
            made.lives = lambda: mine is self._process and self.alive and not self._asleep
            return made

        def open_session(
            description: RunDescription,
            *,
            threads: int,  # noqa: ARG001
            path: str | None = None,  # noqa: ARG001
        ) -> Session:
            return session_of(self._subject, description, self._body())

        def measure(
            session: Session,
            *,
            threads: int,  # noqa: ARG001
            seconds: float,
        ) -> Calibration:
            self._time.wait(seconds)
            guess = self.spec.speed * (0.8 + 0.4 * self._random.random())
            return Calibration(guess, 0.1 * guess, session.trainer.path.name, "virtual time", 2**30)

        return Tools(
            pulse=pulse,
            open_session=open_session,
            measure=measure,
            clock=self._time.now,
            wall_clock=lambda: self._time.now() + self._skew,
            jitter=self._random.random,
            crash_points=CrashPoints(self._point),
        )

    def _body(self) -> Body:
        return Body(self.spec.speed, self._time.now, self._time.wait, self._struck, self._suffer)

    def _struck(self) -> Sequence[Fault]:
        task = self._pulse.state.task if self._pulse is not None else None
        struck = self._faults.strike(Moment(Where.TRAIN, worker=self.spec.name, task=task or 0))
        return [*struck, Fault(self.spec.poison, 10.0)] if self.spec.poison in IN_TRAINING else struck

    def _suffer(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.KILL:
                self.die(fault.back_after)
                self._time.wait(0.0)
            case Kind.SLEEP:
                self._asleep = True
                self._time.wait(fault.value)
                self._asleep = False
                self._skew += fault.value  # a monotonic clock that stood still, seen from the wall
            case Kind.SKEW:
                self._skew += fault.value
            case _:
                pass

    def _point(self, name: str) -> None:
        for fault in self._faults.strike(Moment(Where.WORKER_POINT, name, self.spec.name)):
            self.die(fault.back_after)
            assert self._process is not None
            self._process.check()


def _silent() -> FilteringBoundLogger:
    """Nobody reads the log of a rehearsal; making its lines would be most of the work."""
    wrapped = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[],
        wrapper_class=structlog.make_filtering_bound_logger("critical"),
    )
    return cast("FilteringBoundLogger", wrapped)
