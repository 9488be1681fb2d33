"""The worker's life: register, deliver what is left, calibrate, then take and report tasks until the end.

A finished update is delivered before anything else, also after a restart. Nothing here ends the process for
trouble that can pass: no coordinator, no run yet, a lost registration, a failed task. What cannot pass by
itself (wrong secret, another model layout) is raised as one of the project's errors.
"""

from __future__ import annotations

import itertools
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
from structlog.typing import FilteringBoundLogger

from bithaul import __version__
from bithaul.errors import (
    BithaulError,
    Forbidden,
    Gone,
    LayoutMismatch,
    OutOfDisk,
    Unauthorized,
    UnknownName,
)
from bithaul.exchange.codecs import CODECS
from bithaul.exchange.messages import (
    Capabilities,
    HeartbeatRequest,
    LeaseOutcome,
    Receipt,
    RegisterRequest,
    RunDescription,
    RunState,
    TaskMessage,
    Verdict,
)
from bithaul.exchange.weights import WEIGHT_FORMATS
from bithaul.model.device import hardware
from bithaul.worker.health import Beacon
from bithaul.worker.instance import instance_of
from bithaul.worker.link import IDENTITY_IN_USE, Link, Refused, Stopped
from bithaul.worker.logship import LogBuffer
from bithaul.worker.outbox import Entry, Outbox
from bithaul.worker.residual import ResidualStore
from bithaul.worker.session import Session
from bithaul.worker.settings import WorkerSettings
from bithaul.worker.stop import Stop
from bithaul.worker.task import Ended, TaskRunner
from bithaul.worker.tools import Tools
from bithaul.worker.transfers import Transfers

_ASK_AGAIN_SECONDS = 5.0
_LONGEST_REST = 60.0
_NO_LEASE = frozenset({"unknown_fence", "base_from_future"})  # nobody will ever take this update
_DELIVERIES = 10  # of an update that is refused for other reasons; some six minutes


@dataclass
class _Current:
    """What changes when the coordinator describes another run."""

    session: Session
    runner: TaskRunner
    capabilities: Capabilities | None = None


class Worker:
    """`run` returns when the worker was asked to stop or, if so set, when the run is finished."""

    def __init__(
        self,
        settings: WorkerSettings,
        client: Link,
        *,
        stop: Stop,
        log: FilteringBoundLogger,
        buffer: LogBuffer,
        heartbeat_seconds: float = 10.0,
        tools: Tools | None = None,
    ) -> None:
        self._tools = tools = tools or Tools()
        self._settings = settings
        self._client = client
        self._stop = stop
        self._log = log
        self._beacon = Beacon(settings.beacon)
        state = settings.state_dir
        state.mkdir(parents=True, exist_ok=True)
        self._instance = instance_of(state)
        self._outbox = Outbox(state / "outbox", trouble=self._unreadable)
        self._residuals = ResidualStore(state / "residual")
        self._transfers = Transfers(
            client,
            state / "cache",
            stop=stop,
            moved=self._moved,
            broken=self._broken_delta,
            jitter=tools.jitter,
        )
        self._pulse = tools.pulse(client, buffer, log=log, seconds=heartbeat_seconds)
        self._buffer = buffer
        self._current: _Current | None = None
        self._failures = 0

    def run(self) -> None:
        """Raises `Unauthorized`, `Forbidden`, `LayoutMismatch`, `UnknownName` and `InvalidConfig` (a path
        that this machine cannot run); the rest it lives through.
        """
        try:
            self._register()
            self._pulse.start()
            self._deliver_all()
            self._calibrate()
            while not self._stop.requested and self._turn():
                pass
        except Stopped as stopped:
            self._log.info("stopping", reason=str(stopped))
        finally:
            self._leave()

    # -- one turn -------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Ask for work and do it. False when the run is over and the worker should end with it."""
        try:
            self._deliver_all()
            if not self._pulse.orders.registered:
                self._register()
            if self._pulse.orders.drain:
                self._stop.wait(self._pulse.seconds)
                return True
            answer = self._client.work()
            self._beacon.touch()
            if answer.task is not None:
                self._do(answer.task)
            elif answer.state is RunState.FINISHED and self._settings.exit_when_finished:
                self._log.info("the run is finished")
                return False
            else:
                self._stop.wait(answer.retry_after)
        except Gone:
            self._register()
        except Refused as error:
            self._log.warning("refused", reason=error.message, code=error.error_code, status=error.status)
            self._stop.wait(_ASK_AGAIN_SECONDS)
        return True

    def _do(self, task: TaskMessage) -> None:
        current = self._ready()
        self._log.info("task", task=task.task, base=task.base_version, examples=task.examples)
        try:
            result = current.runner.run(task)
        except Stopped:
            result = Ended(LeaseOutcome.RELEASED, "stopped", "The worker was asked to stop.")
        except (Gone, Unauthorized, Forbidden):
            raise
        except Exception as error:  # noqa: BLE001 - one broken task must not end the service
            self._log.error("task broke", task=task.task, exc_info=True)
            result = Ended(LeaseOutcome.FAILED, "internal_error", f"{type(error).__name__}: {error}"[:300])
        if isinstance(result, Entry):
            self._failures = 0
            self._deliver(result)
        else:
            self._end_lease(task, result)
        self._pulse.idle()

    def _end_lease(self, task: TaskMessage, ended: Ended) -> None:
        say = self._log.warning if ended.outcome is LeaseOutcome.FAILED else self._log.info
        say(f"task {ended.outcome}", task=task.task, code=ended.code, reason=ended.reason)
        request = HeartbeatRequest(task=task.task, fence=task.fence, outcome=ended.outcome, code=ended.code)
        self._client.heartbeat(request, persist=True)
        if ended.outcome is LeaseOutcome.FAILED or not self._stop.requested:
            self._failures += 1
            self._stop.wait(min(_LONGEST_REST, 2.0**self._failures))

    # -- delivery -------------------------------------------------------------------------------------

    def _deliver_all(self) -> None:
        for entry in self._outbox.entries():
            self._log.info("delivering a finished update", task=entry.header.task)
            self._deliver(entry)
            self._pulse.idle()

    def _deliver(self, entry: Entry) -> None:
        """Send until there is a receipt. Raises `Stopped` when the grace period ends; the entry stays."""
        header = entry.header
        self._pulse.begin(header.task, header.fence)
        self._pulse.report("uploading", tokens=header.tokens, loss=header.loss_last)
        for attempt in itertools.count(1):
            try:
                receipt = self._client.submit(header.task, header.fence, entry.frame, moved=self._moved)
            except Gone:
                self._register()
                if not entry.frame.exists():
                    return  # delivered meanwhile, while another machine had the key
            except Refused as error:
                if self._give_up(entry, error, attempt):
                    return
            else:
                self._settle(entry, receipt)
                break
        self._outbox.delete(entry)
        self._tools.crash_points.hit("outbox.deleted")

    def _give_up(self, entry: Entry, error: Refused, attempt: int) -> bool:
        """Whether a refused update is done with. No receipt has been given for it, so only one that belongs
        to no lease is deleted; of others (a proxy's limit, another version, a wrong folder there) it is
        asked again for some minutes, then they are set aside. Raises `Stopped`; then the entry stays.
        """
        facts = {
            "task": entry.header.task,
            "status": error.status,
            "code": error.error_code,
            "reason": error.message,
        }
        if error.error_code in _NO_LEASE:
            self._log.error("update refused, dropped", **facts)
            self._outbox.delete(entry)
            return True
        if attempt >= _DELIVERIES:
            place = self._outbox.set_aside(entry)
            self._log.error("update refused again and again, set aside", kept_in=str(place), **facts)
            return True
        rest = min(_LONGEST_REST, 2.0**attempt)
        self._log.warning("update refused, kept to be sent again", again_in_seconds=rest, **facts)
        if self._stop.wait(rest, urgent=True):
            raise Stopped("an update is kept that was refused") from error
        return False

    def _unreadable(self, folder: Path, why: str) -> None:
        self._log.error("an update in the outbox is not delivered", folder=str(folder), reason=why)

    def _settle(self, entry: Entry, receipt: Receipt) -> None:
        """The residual moves on only with an accepted update; otherwise the old one stays in force."""
        header = entry.header
        facts = {"task": header.task, "fence": header.fence, "staleness": receipt.staleness}
        if receipt.verdict is Verdict.ACCEPTED:
            self._tools.crash_points.hit("receipt.heard")
            target = self._residuals.path(
                run=header.run,
                lineage=header.lineage,
                layout_hash=header.layout_hash,
                codec=header.codec,
            )
            try:
                self._residuals.commit(entry.residual, target, clip=receipt.clip)
            except OutOfDisk as error:
                self._log.warning("residual dropped", reason=error.message, **facts)
            self._tools.crash_points.hit("residual.renamed")
            if receipt.clip < 1.0:
                self._log.warning("update clipped, the rest is dropped", clip=round(receipt.clip, 4), **facts)
            self._log.info("update accepted", **facts)
        elif receipt.verdict is Verdict.COMPARED:
            self._log.info("update compared", code=receipt.code, reason=receipt.reason, **facts)
        else:
            self._log.warning(
                "update not merged",
                verdict=str(receipt.verdict),
                code=receipt.code,
                reason=receipt.reason,
                **facts,
            )

    # -- registration ---------------------------------------------------------------------------------

    def _register(self) -> None:
        """Learn the run, build what it needs, agree on layout and formats.

        Waits while there is no run, and while another machine works with this one's key.
        """
        description = self._announce(None, None)
        if self._current is None or not self._current.session.same_run(description):
            session = self._tools.open_session(
                description, threads=self._settings.threads, path=self._settings.path
            )
            self._current = _Current(session, self._runner(session))
            self._log.info(
                "joined run",
                run=description.run,
                state=str(description.state),
                parameters=session.layout.size,
                codec=session.codec.name,
                threads=self._settings.threads,
            )
        self._pulse.seconds = description.heartbeat_seconds
        layout_hash = self._current.session.layout.hash
        self._announce(layout_hash, self._current.capabilities)
        self._pulse.registered()

    def _announce(self, layout_hash: str | None, capabilities: Capabilities | None) -> RunDescription:
        request = RegisterRequest(
            codecs=list(CODECS),
            weight_formats=list(WEIGHT_FORMATS),
            layout_hash=layout_hash,
            capabilities=capabilities,
            audits=True,
            instance=self._instance,
        )
        while True:
            try:
                return self._client.register(request).run
            except Refused as error:
                if error.error_code == LayoutMismatch.code:
                    raise LayoutMismatch(error.message) from error
                if error.error_code == UnknownName.code:
                    raise UnknownName(error.message) from error
                self._log.warning("cannot register yet", reason=error.message, code=error.error_code)
                if error.error_code == IDENTITY_IN_USE:
                    self._deliver_all()  # what was finished before still counts
                if self._stop.wait(_ASK_AGAIN_SECONDS):
                    raise Stopped("not registered") from error

    def _calibrate(self) -> None:
        """Measure a real training step of the run's model on this machine and tell the coordinator."""
        current = self._require()
        chosen = current.session.trainer.path
        self._pulse.report("calibrating")
        measured = self._tools.measure(
            current.session, threads=self._settings.threads, seconds=self._settings.calibration_seconds
        )
        self._log.info(
            "calibrated",
            tokens_per_second=round(measured.tokens_per_second),
            spread=round(measured.spread),
            path=chosen.name,
            reason=chosen.reason,
        )
        gpu = hardware(chosen)
        name, memory = gpu or (_cpu(), _main_memory())
        current.capabilities = Capabilities(
            device=name[:200],
            threads=self._settings.threads,
            memory_bytes=memory,
            tokens_per_second=measured.tokens_per_second,
            tokens_per_second_spread=measured.spread,
            path=f"{chosen.name}: {chosen.reason}"[:300],
            software=__version__,
        )
        self._announce(current.session.layout.hash, current.capabilities)
        self._pulse.idle()

    def _ready(self) -> _Current:
        """The current run, calibrated."""
        if self._require().capabilities is None:
            self._calibrate()
        return self._require()

    def _require(self) -> _Current:
        if self._current is None:
            raise Stopped("not registered")
        return self._current

    def _runner(self, session: Session) -> TaskRunner:
        return TaskRunner(
            session,
            transfers=self._transfers,
            outbox=self._outbox,
            residuals=self._residuals,
            pulse=self._pulse,
            beacon=self._beacon,
            stop=self._stop,
            log=self._log,
            tools=self._tools,
        )

    # -- the rest -------------------------------------------------------------------------------------

    def _moved(self, _bytes: int) -> None:
        self._beacon.touch()

    def _broken_delta(self, reason: str) -> None:
        self._log.warning("delta not usable, fetching the whole version", reason=reason, cpu=_cpu())

    def _leave(self) -> None:
        """Say goodbye within the grace period: what is left of the log, then the beacon goes."""
        waiting = len(self._outbox.entries())
        if waiting:
            self._log.info("finished updates are kept for the next start", updates=waiting)
        if self._current is not None:
            self._log.info("worker ended")
        self._pulse.stop()
        try:
            while self._buffer.ship(self._client.logs):
                pass
        except BithaulError as error:
            self._log.debug("log not shipped", reason=error.message)
        self._beacon.clear()


def _cpu() -> str:
    return platform.processor() or platform.machine() or "cpu"


def _main_memory() -> int:
    return int(psutil.virtual_memory().total)
