"""GET /health: can this coordinator do its work? Every part is really tried, none is assumed.

`problems` tells the run's operator, and nobody else, why the run may stand still.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import SQLAlchemyError

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, services, versions
from bithaul.errors import BithaulError, CorruptFile, OutOfDisk

PROBE = "health-probe"
log = logging.getLogger(__name__)


class Check(BaseModel):
    """`name` is stable: database, blobs, disk, version, service.<name>."""

    model_config = ConfigDict(frozen=True)

    name: str
    ok: bool
    detail: str


class HealthView(BaseModel):
    model_config = ConfigDict(frozen=True)

    ok: bool
    checks: list[Check]


def health(c: Coordinator) -> HealthView:
    """Never raises: what cannot be checked is not ok."""
    checks = [
        _check("database", lambda: _database(c)),
        _check("blobs", lambda: _blobs(c)),
        _check("disk", lambda: _disk(c)),
        _check("version", lambda: _version(c)),
        *_services(c),
    ]
    return HealthView(ok=all(check.ok for check in checks), checks=checks)


def problems(c: Coordinator) -> list[str]:
    """What keeps the run from going on, one sentence each; needs neither a write nor free space."""
    full = []
    try:
        _disk(c)
    except OutOfDisk as error:
        full = [error.message]
    with c.database.read() as connection:
        results = services.list_results(connection)
        run = runs.find_run(connection)
    if run is not None and run.paused_because:
        full.append(run.paused_because)
    return full + [f"{r.name}: {r.message}" for r in results if not r.ok and r.name not in (PROBE, "disk")]


def _check(name: str, part: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=part())
    except BithaulError as error:
        return Check(name=name, ok=False, detail=error.message)
    except (OSError, SQLAlchemyError) as error:  # anyone may ask: paths and SQL stay in the log
        log.error("the health check %s failed", name, exc_info=error)
        return Check(name=name, ok=False, detail=f"{type(error).__name__}; see the coordinator's log")


def _database(c: Coordinator) -> str:
    """Takes the write lock and writes a row, so a read-only or full disk shows."""
    with c.database.write() as connection:
        services.store_result(
            connection,
            services.ServiceResult(name=PROBE, ok=True, message="", finished_at=c.clock.now(), seconds=0.0),
        )
    return "writable"


def _blobs(c: Coordinator) -> str:
    c.blobs.check_writable()
    return "writable"


def _disk(c: Coordinator) -> str:
    free = c.blobs.free_bytes()
    if free < c.settings.disk_reserve_bytes:
        raise OutOfDisk(
            f"Only {free // 2**20} MiB are free, {c.settings.disk_reserve_bytes // 2**20} MiB are kept in "
            "reserve: uploads are refused. Free some space."
        )
    return f"{free // 2**20} MiB free"


def _version(c: Coordinator) -> str:
    """The newest weights are there with their length. Start and merge compare their SHA-256."""
    with c.database.read() as connection:
        run = runs.find_run(connection)
        if run is None:
            return "no run yet"
        newest = versions.newest_version(connection, run.id)
    blob = c.blobs.get(newest.sha256)
    if blob.size != newest.size:
        raise CorruptFile(
            f"The weights of version {newest.version} have {blob.size} bytes, not {newest.size}."
        )
    return f"version {newest.version}"


def _services(c: Coordinator) -> list[Check]:
    try:
        with c.database.read() as connection:
            results = services.list_results(connection)
    except (BithaulError, SQLAlchemyError):
        return []  # the database's own check says why
    failed = "failed; see the coordinator's log"
    return [
        Check(name=f"service.{r.name}", ok=r.ok, detail=r.message if r.ok else failed)
        for r in results
        if r.name != PROBE
    ]
