"""The error-feedback residual: what the codec could not carry, added to the next update.

Kept per (run, layout, codec) with the version it refers to, as a weights file. It changes only by an atomic
rename when the coordinator has accepted the update it belongs to; a damaged or too old one counts as none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bithaul.errors import CorruptFile
from bithaul.exchange.weights import open_weights
from bithaul.worker.files import move_into_place

MAX_VERSIONS_BEHIND = 16


class ResidualStore:
    """One file per (run, layout hash, codec) in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, *, run: str, layout_hash: str, codec: str) -> Path:
        key = hashlib.sha256("\0".join((run, layout_hash, codec)).encode()).hexdigest()
        return self._folder / f"{key[:32]}.bgwt"

    def load(self, path: Path, *, count: int, base_version: int) -> npt.NDArray[np.float32] | None:
        """The residual, mapped read-only; None when there is none or its base is too far from this one."""
        if not path.is_file():
            return None
        try:
            weights = open_weights(path, expected_count=count)
        except CorruptFile:
            path.unlink(missing_ok=True)
            return None
        if not 0 <= base_version - weights.version <= MAX_VERSIONS_BEHIND:
            return None
        return weights.vector

    def commit(self, source: Path, target: Path) -> None:
        """Put the next residual in force. Repeating it after a crash is harmless."""
        if source.is_file():
            move_into_place(source, target)
