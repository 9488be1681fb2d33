"""Updates whose values are not finite, kept for a person to look at: the newest few, never more."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bithaul.coordinator.blobs.store import UploadedFile
from bithaul.coordinator.context import Coordinator


def keep_for_inspection(c: Coordinator, upload: UploadedFile, *, task: int, fence: str) -> None:
    """Move the upload to the inspection folder; the oldest there go. Never raises: its receipt stands."""
    most, folder = c.settings.inspection_keep, c.settings.inspection_folder
    if most == 0:
        return
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        upload.path.replace(folder / f"{task}.{fence}.bhuf")
        for path in sorted(folder.glob("*.bhuf"), key=_age)[:-most]:
            path.unlink(missing_ok=True)


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name
