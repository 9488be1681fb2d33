"""When to go back to an older version, and what that means for versions, tasks and workers.

A rollback never deletes: the old weights are published as a *new* version of a new lineage, and what was
merged since is discarded and its slices issued again. Pure: rows in, a plan out; see exchange.md section 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SIGMAS = 4.0
SMOOTHING = 0.2
IN_A_ROW = 2
FEWEST = 6  # measurements before the rule says anything
NOISE_FLOOR = 0.002  # of the loss: equal losses would make any change an alarm


@dataclass(frozen=True)
class Measured:
    """A version and its held-out loss; versions nobody measured are left out."""

    version: int
    loss: float


def alarm(measured: Sequence[Measured]) -> int | None:
    """The version to go back to when the two newest lie above EMA + 4 sigma, else None.

    It is the last one before them. The alarming values do not move the average.
    """
    mean = square = 0.0
    count = 0
    bad: list[int] = []
    last_good: int | None = None
    for point in measured:
        sigma = math.sqrt(max(0.0, square))
        limit = mean + SIGMAS * max(sigma, NOISE_FLOOR * abs(mean))
        if not math.isfinite(point.loss) or (count >= FEWEST and point.loss > limit):
            bad.append(point.version)
            continue
        bad.clear()
        last_good = point.version
        away = point.loss - mean
        step = 1.0 if count == 0 else SMOOTHING
        mean += step * away
        square = 0.0 if count == 0 else (1 - SMOOTHING) * (square + SMOOTHING * away * away)
        count += 1
    return last_good if len(bad) >= IN_A_ROW else None


@dataclass(frozen=True)
class MadeVersion:
    version: int
    lineage: int
    tokens_total: int


@dataclass(frozen=True)
class MergedReport:
    seq: int
    task: int
    worker: str
    version: int  # merged in; 0: accepted, in no version yet
    base: int


@dataclass(frozen=True)
class RollbackPlan:
    """What one transaction writes."""

    restored: int
    version: int  # the new one, with the restored weights
    lineage: int
    tokens_total: int
    discarded_tasks: tuple[int, ...]  # their slices are issued again
    on_probation: tuple[str, ...]
    pause: bool  # the second automatic one in a row: call the operator


def plan_rollback(
    to: int,
    made: Sequence[MadeVersion],
    reports: Sequence[MergedReport],
    *,
    automatic: bool,
    automatic_before: bool,
) -> RollbackPlan:
    """Go back to version `to`, which must be one of `made` and not the newest. ValueError otherwise.

    Everything merged after it is discarded, and what was accepted on a base after it.
    """
    newest = max(made, key=lambda v: v.version)
    target = next((v for v in made if v.version == to), None)
    if target is None or to >= newest.version:
        raise ValueError(f"there is no going back from version {newest.version} to {to}")
    gone = [r for r in reports if r.version > to or (r.version == 0 and r.base > to)]
    return RollbackPlan(
        restored=to,
        version=newest.version + 1,
        lineage=newest.lineage + 1,
        tokens_total=target.tokens_total,
        discarded_tasks=tuple(sorted({r.task for r in gone})),
        on_probation=tuple(sorted({r.worker for r in gone})),
        pause=automatic and automatic_before,
    )
