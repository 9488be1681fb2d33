"""Files that survive a power cut: written aside, synced, renamed into place, the folder synced.

A rename alone is not durable. On Windows a reader may hold the target for a moment, so a rename is tried
for a bounded time there.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_TRIES = 20 if os.name == "nt" else 1


def sync_folder(folder: Path) -> None:
    """Make renames and deletions inside `folder` durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make it and what leads to it, if they are missing; their names are durable then."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing or [folder]:
        sync_folder(made.parent)


def move_into_place(source: Path, target: Path) -> None:
    """Atomic rename of a synced file or folder, then both folders are synced."""
    for attempt in range(_TRIES):
        try:
            source.replace(target)
            break
        except PermissionError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.1)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)
