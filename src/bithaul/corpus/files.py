"""Files that are there completely or not at all: written aside, synced, then renamed into place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bithaul.errors import writing


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably; the folder is made when it is missing.

    Raises `OutOfDisk`, `InvalidInput` for a place that cannot be written; nothing is left aside then.
    """
    aside = path.with_name(f".{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
