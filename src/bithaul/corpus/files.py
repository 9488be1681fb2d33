"""Files that are there completely or not at all: written aside, synced, then renamed into place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably; the folder is made when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
