"""Which file answers GET /weights/{version}, its /delta and GET /corpus/{shard}.

Ids are looked up in the database, never joined to paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bithaul.coordinator.blobs.store import BlobRef
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, versions
from bithaul.errors import NotFound


@dataclass(frozen=True)
class CurrentVersion:
    version: int
    sha256: str
    size: int


def current_version(c: Coordinator) -> CurrentVersion:
    """The newest announced version. Raises `NotFound` when no run was created."""
    with c.database.read() as connection:
        row = versions.newest_version(connection, runs.get_run(connection).id)
    return CurrentVersion(row.version, row.sha256, row.size)


def weights_blob(c: Coordinator, version: int) -> BlobRef:
    """Raises `NotFound` for a version that does not exist or whose weights were retired."""
    with c.database.read() as connection:
        row = versions.find_version(connection, runs.get_run(connection).id, version)
    if row is None:
        raise NotFound(f"There is no weight version {version}.", code="unknown_version")
    if row.retired_at is not None:
        raise NotFound(
            f"The weights of version {version} were retired; use a newer one.", code="version_retired"
        )
    return c.blobs.get(row.sha256)


def delta_blob(c: Coordinator, version: int) -> BlobRef:
    """Raises `NotFound` for a version that does not exist or to which no delta leads (any more)."""
    with c.database.read() as connection:
        row = versions.find_version(connection, runs.get_run(connection).id, version)
    if row is None:
        raise NotFound(f"There is no weight version {version}.", code="unknown_version")
    if row.delta_sha256 is None:
        raise NotFound(f"No delta leads to version {version}; fetch the whole version.", code="no_delta")
    return c.blobs.get(row.delta_sha256)


def corpus_blob(c: Coordinator, shard: str, *, kind: Literal["data", "index"]) -> BlobRef:
    """Raises `NotFound` for an unknown shard."""
    with c.database.read() as connection:
        row = runs.find_shard(connection, shard)
    if row is None:
        raise NotFound("There is no such corpus shard; GET the run for the list.", code="unknown_shard")
    return c.blobs.get(row.sha256 if kind == "data" else row.index_sha256)
