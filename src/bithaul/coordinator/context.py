"""What every use case gets as its first argument: settings, database, blobs, clock, ids and wake-ups.

No module of the coordinator keeps state of its own, so two coordinators may live in one process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from bithaul.coordinator.blobs.local import LocalBlobStore
from bithaul.coordinator.blobs.store import BlobStore
from bithaul.coordinator.blobs.uploads import Uploads
from bithaul.coordinator.clock import Clock, Ids, SystemClock, SystemIds
from bithaul.coordinator.database.engine import Database
from bithaul.coordinator.lookalikes import Lookalikes
from bithaul.coordinator.settings import Settings


class Events:
    """Wake-ups inside one process. A lost one costs an interval, never correctness."""

    def __init__(self) -> None:
        self.merge = threading.Event()


@dataclass(frozen=True)
class CrashPoints:
    """Named places at which a crash must be harmless. Tests enumerate them and put a crash there."""

    action: Callable[[str], None] | None = None

    NAMES = (
        "claim.decided",
        "claim.committed",
        "upload.chunk",
        "upload.complete",
        "submit.adopted",
        "submit.gated",
        "submit.recorded",
        "submit.committed",
        "flush.chosen",
        "flush.blob_half",
        "flush.blob_written",
        "flush.snapshot_written",
        "flush.recorded",
        "flush.committed",
        "score.computed",
        "score.recorded",
        "score.committed",
        "rollback.decided",
        "rollback.blob_written",
        "rollback.recorded",
        "rollback.committed",
        "retention.half",
        "sweep.half",
    )

    def hit(self, name: str) -> None:
        if name not in self.NAMES:
            raise ValueError(f"{name} is not in CrashPoints.NAMES")
        if self.action is not None:
            self.action(name)


@dataclass(frozen=True)
class Coordinator:
    """Handles, not state. `database.read()` and `database.write()` give SQLAlchemy connections."""

    settings: Settings
    database: Database
    blobs: BlobStore
    uploads: Uploads
    clock: Clock = field(default_factory=SystemClock)
    ids: Ids = field(default_factory=SystemIds)
    events: Events = field(default_factory=Events)
    crash_points: CrashPoints = field(default_factory=CrashPoints)
    lookalikes: Lookalikes = field(default_factory=Lookalikes)

    def close(self) -> None:
        self.database.close()


def open_coordinator(
    settings: Settings,
    *,
    clock: Clock | None = None,
    ids: Ids | None = None,
    crash_points: CrashPoints | None = None,
) -> Coordinator:
    """Open or create everything in `settings.directory` and bring the schema up to date.

    Does not start services and does not judge the run in it: `services.startup.check_run` does.
    """
    settings.directory.mkdir(parents=True, exist_ok=True)
    if not settings.database_url:  # SQLite would make it readable by others; its WAL takes the same mode
        settings.database_file.touch(mode=0o600, exist_ok=True)
    database = Database.open(settings.database, lock_folder=settings.directory)
    blobs = LocalBlobStore(settings.blob_folder, incoming=settings.incoming_folder)
    return Coordinator(
        settings=settings,
        database=database,
        blobs=blobs,
        uploads=Uploads(settings.uploads_folder),
        clock=clock or SystemClock(),
        ids=ids or SystemIds(),
        crash_points=crash_points or CrashPoints(),
    )
