"""Watches free space, so that an operator hears of it before uploads are refused."""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator
from bithaul.errors import OutOfDisk


def watch_disk(c: Coordinator) -> str:
    """Raises `OutOfDisk` below the reserve."""
    free = c.blobs.free_bytes()
    if free < c.settings.disk_reserve_bytes:
        raise OutOfDisk(
            f"Only {free // 2**20} MiB are free, {c.settings.disk_reserve_bytes // 2**20} MiB are kept in "
            "reserve: uploads are refused until space is freed."
        )
    return f"{free // 2**30} GiB free"
