"""Finished updates on disk until their receipt: from `put` on, an update cannot be lost.

An entry is a folder `<task>.<fence>` with the frame exactly as it will be sent and the residual that becomes
valid with it. It appears by one rename after everything inside was synced; a retry sends the same bytes.
Deciding what a receipt means is the loop's part. What cannot be delivered is set aside, not deleted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bithaul.errors import BithaulError, OutOfDisk
from bithaul.exchange.frame import read_header, write_frame
from bithaul.exchange.messages import ReportHeader
from bithaul.exchange.weights import write_weights
from bithaul.worker.files import make_folder, move_into_place, sync_folder

_ASIDE = ".aside-"
_REFUSED = ".refused"
_REFUSED_KEPT = 4  # the newest of those that were set aside
_FRAME = "update.bhuf"
_RESIDUAL = "residual.bgwt"


@dataclass(frozen=True)
class Entry:
    """One finished update. `residual` need not exist: lossless codecs have none."""

    folder: Path
    header: ReportHeader

    @property
    def frame(self) -> Path:
        return self.folder / _FRAME

    @property
    def residual(self) -> Path:
        return self.folder / _RESIDUAL


class Outbox:
    """The entries in `folder`; leftovers of an interrupted `put` are removed on opening.

    `trouble` hears of an entry that cannot be read: its folder, or where it stands now, and why.
    """

    def __init__(self, folder: Path, *, trouble: Callable[[Path, str], None] = lambda *_: None) -> None:
        self._folder = folder
        self._trouble = trouble
        make_folder(folder)
        for leftover in folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def put(
        self,
        header: ReportHeader,
        payload: bytes | bytearray | memoryview,
        *,
        residual: npt.NDArray[np.float32] | None,
    ) -> Entry:
        """Store an update durably. Raises `OutOfDisk`; then nothing is left behind."""
        name = f"{header.task}.{header.fence}"
        aside, final = self._folder / f"{_ASIDE}{name}", self._folder / name
        try:
            aside.mkdir()
            with (aside / _FRAME).open("wb") as file:
                write_frame(file, header, payload)
                file.flush()
                os.fsync(file.fileno())
            if residual is not None:
                with (aside / _RESIDUAL).open("wb") as file:
                    write_weights(file, header.base_version, residual)
                    file.flush()
                    os.fsync(file.fileno())
            sync_folder(aside)
            move_into_place(aside, final)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise OutOfDisk(f"The update of task {header.task} cannot be stored: {error}.") from error
        return Entry(final, header)

    def entries(self) -> list[Entry]:
        """What waits for a receipt, oldest first.

        One that cannot be read now (no file handle left, a lock of a virus scanner) waits for the next time;
        one whose frame is damaged is set aside.
        """
        found = []
        folders = [p for p in self._folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
        for folder in sorted(folders, key=lambda p: (p.stat().st_mtime_ns, p.name)):
            try:
                with (folder / _FRAME).open("rb") as file:
                    found.append(Entry(folder, read_header(file)))
            except (BithaulError, FileNotFoundError) as error:
                self._trouble(self._set_aside(folder), f"it is damaged ({error}) and was set aside")
            except OSError as error:
                self._trouble(folder, f"it cannot be read now ({error}) and waits")
        return found

    def set_aside(self, entry: Entry) -> Path:
        """Where an entry stands from now on that is not to be delivered; the newest few are kept."""
        return self._set_aside(entry.folder)

    def _set_aside(self, folder: Path) -> Path:
        refused = self._folder / _REFUSED
        make_folder(refused)
        place = refused / folder.name
        shutil.rmtree(place, ignore_errors=True)
        os.utime(folder)  # the order is that of setting aside
        folder.rename(place)
        sync_folder(self._folder)
        for old in sorted(refused.iterdir(), key=lambda p: p.stat().st_mtime_ns)[:-_REFUSED_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return place

    def delete(self, entry: Entry) -> None:
        """Forget a delivered entry; by rename first, so that a crash never leaves half an entry."""
        aside = self._folder / f"{_ASIDE}{entry.folder.name}"
        shutil.rmtree(aside, ignore_errors=True)
        entry.folder.rename(aside)
        sync_folder(self._folder)
        shutil.rmtree(aside, ignore_errors=True)


def payload_sha256(payload: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(payload).hexdigest()
