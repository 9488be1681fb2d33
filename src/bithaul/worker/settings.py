"""What a worker is told by the person who runs it. Plain data; the secret is not part of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class WorkerSettings:
    """`threads` is how many compute threads training may use; `beacon` the health file (None: none).

    `path` names the compute path of a step (None: the fastest one of this machine).
    """

    url: str
    client_id: str
    state_dir: Path
    threads: int = 1
    path: str | None = None
    name: str = ""
    beacon: Path | None = None
    exit_when_finished: bool = False
    calibration_seconds: float = 5.0


def default_threads() -> int:
    """The physical cores this process may run on: a second thread per core does not pay for training."""
    physical = psutil.cpu_count(logical=False) or 1
    process = psutil.Process()
    allowed = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else physical
    return max(1, min(physical, allowed))
