"""The error-feedback residual: what the codec could not carry, added to the next update.

Kept per (run, lineage, layout, codec) with the version it refers to, as a weights file. It changes only by an
atomic rename when the coordinator has accepted the update it belongs to; a damaged or too old one counts as
none, and one of another lineage is dropped. When the coordinator clipped the update, the residual shrinks
with it: what was cut off is dropped, the part that had not been sent included.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bithaul.errors import CorruptFile, OutOfDisk
from bithaul.exchange.weights import open_weights, weights_size, write_weights
from bithaul.worker.files import make_folder, move_into_place

MAX_VERSIONS_BEHIND = 16


class ResidualStore:
    """One file per (run, layout hash, codec) in `folder`, of the newest lineage seen."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_folder(folder)

    def path(self, *, run: str, lineage: int, layout_hash: str, codec: str) -> Path:
        key = hashlib.sha256("\0".join((run, layout_hash, codec)).encode()).hexdigest()
        return self._folder / f"{key[:32]}.{lineage}.bgwt"

    def load(self, path: Path, *, count: int, base_version: int) -> npt.NDArray[np.float32] | None:
        """The residual, mapped read-only; None when there is none or its base is too far from this one.

        Those of other lineages are deleted: they correct weights that were given up.
        """
        for other in self._folder.glob(f"{path.name.split('.')[0]}.*"):
            if other != path:
                other.unlink(missing_ok=True)
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

    def commit(self, source: Path, target: Path, *, clip: float = 1.0) -> None:
        """Put the next residual in force, times `clip`. Repeating it after a crash is harmless.

        Raises `OutOfDisk`; then there is none, since the old one has been sent. It corrects little.
        """
        if not source.is_file():
            return
        try:
            self._commit(source, target, clip)
        except OSError as error:
            target.unlink(missing_ok=True)
            raise OutOfDisk(f"The residual of the last update cannot be stored: {error}.") from error

    def _commit(self, source: Path, target: Path, clip: float) -> None:
        if clip == 1.0:
            move_into_place(source, target)
            return
        count = (source.stat().st_size - weights_size(0)) // 4
        weights = open_weights(source, expected_count=count)
        aside = target.with_name(f"{target.name}.new")
        with aside.open("wb") as file:
            write_weights(file, weights.version, weights.vector * np.float32(clip))
            file.flush()
            os.fsync(file.fileno())
        move_into_place(aside, target)
