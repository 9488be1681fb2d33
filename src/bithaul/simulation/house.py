"""The real coordinator on virtual time: opened, served by its own services, killed and started again.

Use cases are called directly, the very ones behind the HTTP routes, on a real SQLite file and a real blob
store. A crash at a named point is a power cut: everything closes at once, what was not committed is gone, and
so is what was not synced of its files. While it is down, every call fails as a refused connection does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from bithaul.coordinator.context import Coordinator, CrashPoints, open_coordinator
from bithaul.coordinator.database import ledger, runs, versions
from bithaul.coordinator.database.services import ServiceResult
from bithaul.coordinator.services.backup import create_backup
from bithaul.coordinator.services.restore import restore_backup
from bithaul.coordinator.services.runner import Service, ServiceRunner, standard_services
from bithaul.coordinator.services.startup import check_run
from bithaul.coordinator.settings import load_settings
from bithaul.errors import CorruptFile
from bithaul.simulation.disk import ForgetfulDisk, FullableBlobs
from bithaul.simulation.faults import Faults, Moment, Where
from bithaul.simulation.virtual import Event, VirtualTime
from bithaul.worker.link import Later

T = TypeVar("T")
MOST_PAGES = 2**31  # SQLite cuts it to its own limit


class Crash(BaseException):
    """Sudden death of the coordinator; not an Exception, so that nothing may swallow it."""

    def __init__(self, point: str, back_after: float) -> None:
        super().__init__(point)
        self.back_after = back_after


@dataclass(frozen=True)
class Backup:
    """A file of `bithaul backup create` and what is in it."""

    file: Path
    version: int
    reports: int


@dataclass(frozen=True)
class Restored:
    """How far a restored coordinator went back: versions and reports that are in no file any more."""

    at: float
    versions: int
    reports: int


class SeededIds:
    """Identifiers that the same seed gives again; unique over restarts."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._count = 0

    def fence(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def nonce(self) -> str:
        self._count += 1
        return f"n{self._count}"


class House:
    """One run folder and whoever serves it.

    `merge_delay` is the time from a wake-up to the merger's next look: what comes together is seen together.
    `changed` hears which service has worked, and "rise" after a restart; `failed` what a service died of, or
    why there is no restart.
    """

    def __init__(
        self,
        directory: Path,
        time: VirtualTime,
        faults: Faults,
        *,
        disk: ForgetfulDisk,
        random: Random,
        settings: dict[str, Any],
        merge_delay: float = 1.0,
        changed: Callable[[str], None] = lambda _: None,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.directory = directory
        self.time = time
        self._faults = faults
        self._disk = disk
        self._ids = SeededIds(random)
        self._settings = settings
        self._merge_delay = merge_delay
        self.changed = changed
        self.failed = failed
        self.generation = 0
        self.crashes: list[tuple[float, str]] = []
        self.restored: list[Restored] = []
        self.sent: dict[str, bytes] = {}  # what each worker sent up last
        self.disk_full = False
        self._deaf_until = float("-inf")
        self.down_since: float | None = None
        self._services: list[Event] = []
        self._merge: Event | None = None
        self.c = self._open()

    @property
    def up(self) -> bool:
        return self.down_since is None

    @property
    def answers(self) -> bool:
        return self.up and self.time.now() >= self._deaf_until

    def call(self, use: Callable[[Coordinator], T]) -> T:
        """One use case. Raises `Later` when nobody listens, or when it dies of it."""
        if not self.up:
            raise Later("connection refused")
        if self.time.now() < self._deaf_until:
            raise Later("no answer")
        try:
            return use(self.c)
        except Crash as crash:
            self._fall(crash)
            raise Later("connection reset") from None
        finally:
            if self.up:
                self._hear()

    def serve(self) -> None:
        """Start the services, each for itself, as the service runner does with threads."""
        runner = ServiceRunner(self.c, [])
        for service in standard_services(self.c):
            self._serve(runner, service, first=True)

    def pause(self, seconds: float) -> None:
        """Its process stands still, whoever asks hears nothing; then it goes on as if nothing had been."""
        self._deaf_until = max(self._deaf_until, self.time.now() + seconds)

    def fill_disk(self, full: bool = True) -> None:
        """No blob and no page more, or again as many as wanted. The database hears it from SQLite itself."""
        self.disk_full = full
        if self.up:
            self._limit_pages()

    def back_up(self, file: Path) -> Backup:
        """Into `file`, which must be new."""
        with self.c.database.read() as connection:
            run = runs.get_run(connection)
            version = versions.newest_version(connection, run.id).version
            count = sum(ledger.verdict_counts(connection, run.id).values())
        create_backup(self.c, file, on_size=_nobody, on_progress=_nobody)
        return Backup(file, version, count)

    def restore(self, backup: Backup, *, back_after: float = 60.0) -> Restored:
        """Everything since `backup` is lost with the disk; it comes back `back_after` seconds later."""
        with self.c.database.read() as connection:
            run = runs.get_run(connection)
            version = versions.newest_version(connection, run.id).version
            count = sum(ledger.verdict_counts(connection, run.id).values())
        lost = Restored(self.time.now(), version - backup.version, count - backup.reports)
        self.restored.append(lost)
        self._down(back_after)
        shutil.rmtree(self.directory)
        restore_backup(backup.file, self.directory, clock=self.time, on_size=_nobody, on_progress=_nobody)
        return lost

    def close(self) -> None:
        self._stop_services()
        self.c.close()

    # -- inside ---------------------------------------------------------------------------------------

    def _open(self) -> Coordinator:
        settings = load_settings(self.directory, disk_reserve_bytes=0, **self._settings)
        c = open_coordinator(settings, clock=self.time, ids=self._ids, crash_points=CrashPoints(self._point))
        return replace(c, blobs=FullableBlobs(c.blobs, lambda: self.disk_full))

    def _limit_pages(self) -> None:
        """SQLite's own limit stands for the disk's: a write that needs one page more fails."""
        with self.c.database.write() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            limit = pages if self.disk_full else MOST_PAGES
            connection.exec_driver_sql(f"PRAGMA max_page_count={limit}")

    def _point(self, name: str) -> None:
        for fault in self._faults.strike(Moment(Where.COORDINATOR_POINT, name=name)):
            raise Crash(name, fault.back_after)

    def _fall(self, crash: Crash) -> None:
        self.crashes.append((self.time.now(), str(crash)))
        self._down(crash.back_after)
        self._disk.cut(self.directory, keep_names=len(self.crashes) % 2 == 0)

    def _down(self, back_after: float) -> None:
        self.down_since = self.time.now()
        self.generation += 1
        self.close()
        self.time.after(back_after, self._rise)

    def _rise(self) -> None:
        """As `bithaul coordinator` starts: judge the run, then serve."""
        self.c = self._open()
        try:
            check_run(self.c)
        except CorruptFile as error:
            self.failed(f"the coordinator does not start again: {error.message}")
            return
        self.down_since = None
        if self.disk_full:
            self._limit_pages()
        self.serve()
        self.changed("rise")

    def _serve(self, runner: ServiceRunner, service: Service, *, first: bool = False) -> None:
        generation = self.generation
        stored: ServiceResult | None = None

        def work() -> None:
            nonlocal stored
            if generation != self.generation:
                return
            if self.time.now() < self._deaf_until:
                self._services.append(self.time.at(self._deaf_until, work))
                return
            stored = self._pass(runner, service, before=stored)
            if stored is None:
                return
            self._services.append(self.time.after(service.interval, work))
            self._services = [e for e in self._services if e.when > self.time.now()]

        self._services.append(self.time.after(0.0 if first else service.interval, work))

    def _pass(
        self, runner: ServiceRunner, service: Service, *, before: ServiceResult | None = None
    ) -> ServiceResult | None:
        """One pass of a service; None when the coordinator died of it."""
        try:
            result = runner.run_once(service, before=before)
        except Crash as crash:
            self._fall(crash)
            return None
        if not result.ok and not self.disk_full:
            self.failed(f"service {service.name} failed: {result.message}")
        self.changed(service.name)
        return result

    def _hear(self) -> None:
        """A wake-up of the merger: soon, and once for all that came meanwhile."""
        if not self.c.events.merge.is_set() or self._merge is not None:
            return
        self.c.events.merge.clear()
        merger = standard_services(self.c)[0]
        runner, generation = ServiceRunner(self.c, []), self.generation

        def merge() -> None:
            self._merge = None
            if generation != self.generation:
                return
            if self.time.now() < self._deaf_until:
                self._merge = self.time.at(self._deaf_until, merge)
                return
            if self._pass(runner, merger) is not None:
                self._hear()

        self._merge = self.time.after(self._merge_delay, merge)

    def _stop_services(self) -> None:
        for event in self._services:
            event.cancel()
        self._services = []
        if self._merge is not None:
            self._merge.cancel()
            self._merge = None


def _nobody(_bytes: int) -> None:
    """Nobody looks at the progress."""
