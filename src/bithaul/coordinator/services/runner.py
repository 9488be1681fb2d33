"""Background services: each runs at start and then on its interval, in its own thread, for itself.

A failure is logged, stored as the service's last result and tried again, each time after twice the pause, up
to `LONGEST_PAUSE`; it never stops another service. Only one process may run the services of a folder, and of
a database that is not in it. `stop` returns when every thread has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.services import ServiceResult, store_result
from bithaul.coordinator.services.backup_clock import back_up_when_due
from bithaul.coordinator.services.disk import watch_disk
from bithaul.coordinator.services.merger import merge_all
from bithaul.coordinator.services.prune import prune
from bithaul.coordinator.services.retention import retain
from bithaul.coordinator.services.scorer import score_waiting
from bithaul.coordinator.services.sweeper import sweep
from bithaul.errors import BithaulError, Conflict

log = logging.getLogger(__name__)
STORE_EVERY = 10.0  # seconds between stored results that say the same
REST = 3.0  # times what a pass took: a thousand workers wake the merger more often than it can look
BACKUP_LOOK = 60.0  # seconds between looks at whether a backup is due
LEAD_TRIES = 5  # a second apart
OTHER_LEADS = "Another coordinator serves this database; stop it first, or name another one in database_url."
LONGEST_PAUSE = 10.0  # seconds between tries of a failing service, or its interval if that is longer


@dataclass(frozen=True)
class Service:
    """`work` does one pass and returns a short sentence; `wake` makes the next pass come at once."""

    name: str
    interval: float
    work: Callable[[Coordinator], str]
    wake: threading.Event | None = None


def standard_services(c: Coordinator) -> list[Service]:
    s = c.settings
    backup = [Service("backup", BACKUP_LOOK, back_up_when_due)] if s.backup_folder else []
    return [
        Service("merger", s.merge_interval, merge_all, wake=c.events.merge),
        Service("sweeper", s.sweep_interval, sweep),
        Service("prune", s.prune_interval, prune),
        Service("retention", s.retention_interval, retain),
        Service("disk", s.disk_interval, watch_disk),
        Service("scorer", s.score_interval, score_waiting),
        *backup,
    ]


class ServiceRunner:
    """Usage: `runner = ServiceRunner.standard(c); runner.start(); ...; runner.stop()`."""

    def __init__(self, c: Coordinator, services: Sequence[Service]) -> None:
        self._c = c
        self._services = services
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = FileLock(c.settings.directory / "leader.lock", thread_local=False)

    @classmethod
    def standard(cls, c: Coordinator) -> ServiceRunner:
        """Merger, sweeper, prune, retention, disk watch, scorer; backups where a folder for them is set."""
        return cls(c, standard_services(c))

    def start(self) -> None:
        """Raises `Conflict` when another process runs the services of this folder or database."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise Conflict(
                f"Another coordinator is serving {self._c.settings.directory}; stop it first."
            ) from None
        try:
            lead(self._c)
        except BithaulError:
            self._lock.release()
            raise
        for service in self._services:
            thread = threading.Thread(target=self._loop, args=(service,), name=service.name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, *, timeout: float = 30.0) -> bool:
        """Ask all to end and wait; False when one did not end in time."""
        self._stopping.set()
        for service in self._services:
            if service.wake is not None:
                service.wake.set()
        end = self._c.clock.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - self._c.clock.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        if ended:
            self._c.database.resign()
            self._lock.release()
        return ended

    def _loop(self, service: Service) -> None:
        stored: ServiceResult | None = None
        failures = 0
        while not self._stopping.is_set():
            began = self._c.clock.monotonic()
            stored = self.run_once(service, before=stored)
            taken = self._c.clock.monotonic() - began
            failures = 0 if stored.ok else failures + 1
            if failures or service.wake is None:
                self._stopping.wait(pause(service.interval, failures))
            else:
                service.wake.wait(service.interval)
                service.wake.clear()
                self._stopping.wait(min(REST * taken, service.interval))

    def run_once(self, service: Service, *, before: ServiceResult | None = None) -> ServiceResult:
        """One pass. The result is stored when it is news or the stored one is old; returns what is stored."""
        began = self._c.clock.monotonic()
        try:
            lead(self._c, tries=1)
            ok, message = True, service.work(self._c)
        except BithaulError as error:
            ok, message = False, error.message
            log.warning("service %s failed: %s", service.name, error.message)
        except Exception as error:  # a service must survive its own defects
            ok, message = False, f"{type(error).__name__}: {error}"
            log.exception("service %s failed: %s", service.name, message)
        result = ServiceResult(
            service.name, ok, message[:400], self._c.clock.now(), self._c.clock.monotonic() - began
        )
        news = before is None or (before.ok, before.message) != (ok, result.message)
        if before is not None and not news and result.finished_at - before.finished_at < STORE_EVERY:
            return before
        try:
            with self._c.database.write() as connection:
                store_result(connection, result)
        except (BithaulError, SQLAlchemyError) as error:
            log.warning("the result of service %s is not stored: %s", service.name, error)
        return result


def pause(interval: float, failures: int) -> float:
    """Seconds until the next try after so many failures in a row."""
    return max(interval, min(LONGEST_PAUSE, interval * 2.0 ** min(failures, 30)))


def lead(c: Coordinator, *, tries: int | None = None) -> None:
    """Raises `Conflict` when another coordinator serves the database.

    One that was killed a moment ago may still be known to it, so it is asked again.
    """
    for left in reversed(range(tries or LEAD_TRIES)):
        if c.database.lead():
            return
        if left:
            time.sleep(1.0)
    raise Conflict(OTHER_LEADS)
