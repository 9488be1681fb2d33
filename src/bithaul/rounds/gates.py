"""What an update must look like before it counts, as far as numbers decide it (exchange.md, §9, 4 to 8).

Pure: norms, speeds, indices and cosines come in, a verdict goes out. Thresholds marked *idea* there are ours
and unproven on mixed machines, so a gate of `Gate` is in force only in a run that switched it on. What needs
files (length, hash, finite values) is the coordinator's and always in force.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from bithaul.errors import UnknownName

REMEMBERED = 64
PER_WORKER = 4
FEWEST = 8  # accepted updates before the median says anything
CLIP_ABOVE = 2.0
REFUSE_ABOVE = 10.0
FASTEST = 3.0  # times the calibrated speed
LARGEST = 4096  # indices compared for a copy
COPY_ABOVE = 0.4
AUDIT_COSINE = 0.9
AUDIT_MISSES = 2
AUDIT_LEAST = 0.02  # of the tasks of a worker that was always right


class Gate(StrEnum):
    """The gates a run may switch on."""

    NORM = "norm"  # clip above twice the usual size, refuse above ten times
    SPEED = "speed"  # no credit beyond three times the calibrated speed
    COPY = "copy"  # refuse the payload of another worker
    AUDIT = "audit"  # have another worker repeat some tasks, and compare
    SCORE = "score"  # look whether updates lower the loss on the examples of their tasks
    AGREEMENT = "agreement"  # note how far updates point the same way; a score only
    ROLLBACK = "rollback"  # go back when the held-out loss jumps


def gates_named(names: Iterable[str]) -> tuple[Gate, ...]:
    """Each gate once, in a fixed order. `UnknownName` lists the known ones."""
    wanted = set(names)
    for name in sorted(wanted - set(Gate)):
        raise UnknownName(f"There is no gate {name!r}; the gates are {', '.join(Gate)}.")
    return tuple(gate for gate in Gate if gate in wanted)


@dataclass(frozen=True)
class Seen:
    """An accepted update: who, its L2 norm, its inner steps."""

    worker: str
    norm: float
    steps: int

    @property
    def size(self) -> float:
        """Norm over sqrt(steps): what a longer task does not change."""
        return self.norm / math.sqrt(max(1, self.steps))


@dataclass(frozen=True)
class NormVerdict:
    """`clip` is the factor on the update; 0 refuses it."""

    clip: float
    reason: str = ""

    @property
    def refused(self) -> bool:
        return self.clip == 0.0


def norm_gate(update: Seen, past: Sequence[Seen], *, ceiling: float | None = None) -> NormVerdict:
    """Against the median of the last 64 accepted, four per worker at most.

    Above twice the median it is clipped to that, above ten times refused. `past` has the newest last.
    Until eight are known there is only the `ceiling` on the norm.
    """
    if not math.isfinite(update.norm):
        return NormVerdict(0.0, "The update's norm is not a finite number.")
    usual = usual_size(past)
    if usual is None:
        if ceiling is not None and update.norm > ceiling:
            return NormVerdict(
                0.0, f"The update's norm {update.norm:.4g} is above the ceiling {ceiling:.4g}."
            )
        return NormVerdict(1.0)
    if update.size > REFUSE_ABOVE * usual:
        times = update.size / usual if usual > 0 else math.inf
        return NormVerdict(
            0.0, f"The update is {times:.3g} times as large as usual, at most 10 are accepted."
        )
    if update.size > CLIP_ABOVE * usual:
        return NormVerdict(
            CLIP_ABOVE * usual / update.size, "The update was clipped to twice the usual size."
        )
    return NormVerdict(1.0)


def usual_size(past: Sequence[Seen]) -> float | None:
    """The median size; None while too few are known. One busy worker cannot set it alone."""
    counted: Counter[str] = Counter()
    sizes = []
    for seen in reversed(past):
        if counted[seen.worker] < PER_WORKER:
            counted[seen.worker] += 1
            sizes.append(seen.size)
        if len(sizes) == REMEMBERED:
            break
    return statistics.median(sizes) if len(sizes) >= FEWEST else None


@dataclass(frozen=True)
class SpeedVerdict:
    tokens: int  # that are credited
    strike: bool


def speed_gate(*, tokens: int, seconds: float, calibrated: float) -> SpeedVerdict:
    """Tokens beyond three times the calibrated speed are not credited, and it is a strike."""
    if calibrated <= 0:
        return SpeedVerdict(tokens, strike=False)
    most = int(FASTEST * calibrated * max(0.0, seconds))
    return SpeedVerdict(min(tokens, most), strike=tokens > most)


def agreements(products: npt.NDArray[np.float64], weights: Sequence[float]) -> list[float | None]:
    """The cosine of each update to the momentum, or where there is none to what the others bring together.

    `products` are the inner products of (momentum, u_1, ..., u_n), float64 [n + 1, n + 1]. None: nothing to
    compare with. Honest updates often look bad, so this never decides anything by itself.
    """
    found: list[float | None] = []
    for i in range(1, len(weights) + 1):
        if products[0, 0] > 0:
            along, square = products[0, i], products[0, 0]
        else:
            others = np.array([0.0, *weights])
            others[i] = 0.0
            along, square = float(others @ products[i]), float(others @ products @ others)
        length = math.sqrt(max(0.0, square * products[i, i]))
        found.append(min(1.0, max(-1.0, float(along) / length)) if length > 0 else None)
    return found


def largest(update: npt.NDArray[np.float32], count: int = LARGEST) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest absolute values, sorted."""
    count = min(count, update.size)
    return np.sort(np.argpartition(-np.abs(update), count - 1)[:count]).astype(np.int64)


def largest_of(
    places: npt.NDArray[np.int64], values: npt.NDArray[np.float32], count: int = LARGEST
) -> npt.NDArray[np.int64]:
    """The same of a sparse update, from the places it names in ascending order and their values.

    Many values are of one size; of those at the edge the first are taken, so a copy gives the same places.
    """
    sizes = np.abs(values)
    count = min(count, sizes.size)
    if count == 0:
        return places[:0]
    edge = np.partition(sizes, sizes.size - count)[sizes.size - count]
    above = np.flatnonzero(sizes > edge)
    at_edge = np.flatnonzero(sizes == edge)[: count - above.size]
    return np.sort(places[np.concatenate([above, at_edge])])


def is_copy(mine: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> bool:
    """Whether two sets of `largest` indices overlap as only copies do. The later report is the copy."""
    if not mine.size:
        return False
    return bool(np.intersect1d(mine, theirs).size > COPY_ABOVE * mine.size)


def audit_strike(cosines: Sequence[float]) -> bool:
    """Whether the newest repeated tasks disagree with their first run, twice in a row."""
    return len(cosines) >= AUDIT_MISSES and all(c < AUDIT_COSINE for c in cosines[-AUDIT_MISSES:])


def audit_rate(valid_streak: int) -> float:
    """Share of a worker's tasks that is repeated: 1 / streak, at least 2 %."""
    return max(AUDIT_LEAST, 1.0 / max(1, valid_streak))
