"""Which file answers GET /weights/{version} and GET /corpus/{shard}: ids are looked up, never joined to paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bithaul.coordinator.blobs.store import BlobRef
from bithaul.coordinator.context import Coordinator


@dataclass(frozen=True)
class CurrentVersion:
    version: int
    sha256: str
    size: int


def current_version(c: Coordinator) -> CurrentVersion:
    """The newest announced version. Raises `NotFound` when no run was created."""
    raise NotImplementedError


def weights_blob(c: Coordinator, version: int) -> BlobRef:
    """Raises `NotFound` for a version that does not exist or whose weights were retired."""
    raise NotImplementedError


def corpus_blob(c: Coordinator, shard: str, *, kind: Literal["data", "index"]) -> BlobRef:
    """Raises `NotFound` for an unknown shard."""
    raise NotImplementedError
