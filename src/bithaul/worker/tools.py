"""What a worker gets from its machine: clocks, chance, trainers, and a heartbeat that beats by itself.

The defaults are the real ones. The rehearsal (`bithaul.simulation`) brings its own, so that the very same
worker runs on virtual time. `crash_points` are named places at which a sudden death must be harmless.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bithaul.model.products import StepPath
from bithaul.training.calibrate import Calibration, calibrate
from bithaul.worker.pulse import Pulse
from bithaul.worker.session import Session, open_session


@dataclass(frozen=True)
class CrashPoints:
    """Tests and the rehearsal enumerate them and put a crash there."""

    action: Callable[[str], None] | None = None

    NAMES = (
        "train.mid",
        "train.done",
        "outbox.renamed",
        "receipt.heard",
        "residual.renamed",
        "outbox.deleted",
    )

    def hit(self, name: str) -> None:
        if name not in self.NAMES:
            raise ValueError(f"{name} is not in CrashPoints.NAMES")
        if self.action is not None:
            self.action(name)


def measure(session: Session, *, threads: int, seconds: float) -> Calibration:
    """A real training step of the run's model on this machine."""
    path = session.trainer.path
    return calibrate(
        session.config,
        session.recipe,
        threads=threads,
        seconds=seconds,
        path=path if isinstance(path, StepPath) else path.name,
    )


@dataclass(frozen=True)
class Tools:
    pulse: Callable[..., Pulse] = Pulse
    open_session: Callable[..., Session] = open_session
    measure: Callable[..., Calibration] = measure
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random
    crash_points: CrashPoints = field(default_factory=CrashPoints)
