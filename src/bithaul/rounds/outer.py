"""Outer optimizers: one step of theta (and momentum) from the combined update D, on any slice of the vectors.

An `OuterStep` holds the numbers of one step; it is stored with the version it made, so that a replay is
arithmetic and not a second decision. Sums run in float64 and are rounded once. Signs: D is theta_start -
theta_end, so subtracting it moves theta where the workers went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatVector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

# eta by the effective number of contributors: DiLoCo's scaling study (arXiv:2503.09799), read off a figure
_ETA_FROM = ((7.5, 0.8), (4.5, 0.7), (2.5, 0.6), (0.0, 0.4))
LAG_MU = 0.3  # of momentum, taken off for each version of lag
LAG_ETA = 0.5
SMOOTHED_FLUSHES = 8


@dataclass(frozen=True)
class OuterStep:
    """theta -= eta * (direct * D + (look * mu) * m'), with m' = keep * m + fold * D.

    `carries` False: there is no momentum vector, and `look` is 0.
    """

    eta: float
    mu: float = 0.0
    direct: float = 1.0  # how much of D is applied at once
    keep: float = 0.0
    fold: float = 1.0
    look: float = 1.0  # 0: this step does not use the momentum
    carries: bool = False


def plain(eta: float) -> OuterStep:
    """theta -= eta * D."""
    return OuterStep(eta, look=0.0)


def nesterov(*, eta: float, mu: float, rho: float = 1.0) -> OuterStep:
    """m' = mu * m + rho * D; theta -= eta * (D + mu * m'). DiLoCo's outer step for rho = 1.

    For a fraction rho of a full round `mu` and `eta` must be the fraction's already.
    """
    return OuterStep(eta, mu, keep=mu, fold=rho, carries=True)


def delayed_nesterov(*, eta: float, mu: float, buffer: int, place: int) -> OuterStep:
    """Push number `place` (0 is the first) of `buffer`: theta -= eta * u / N.

    The last one also steps by eta * mu * m. The mean of the window is folded into m push by push, which is
    the same sum (arXiv:2401.09135, section 5).
    """
    last = place == buffer - 1
    return OuterStep(
        eta,
        mu,
        direct=1.0 / buffer,
        keep=mu if place == 0 else 1.0,
        fold=1.0 / buffer,
        look=1.0 if last else 0.0,
        carries=True,
    )


class Moved(NamedTuple):
    """A slice of the next vectors; `square` is |theta' - theta|^2, not finite when a value is not."""

    theta: FloatVector
    momentum: FloatVector | None
    square: float


def apply(
    step: OuterStep,
    theta: FloatVector,
    momentum: FloatVector | None,
    combined: Wide,
    *,
    into: tuple[FloatVector, FloatVector] | None = None,
) -> Moved:
    """One slice of the next theta and momentum, `into` two arrays or new ones; others are only read."""
    from bithaul.rounds import kernels  # compiled for those who merge, not for every command

    new, new_momentum = into if into is not None else (np.empty_like(theta), np.empty_like(theta))
    if not step.carries:
        square = kernels.plain_step(theta, combined, step.direct * step.eta, new)
        return Moved(new, None, float(square))
    before = np.zeros_like(theta) if momentum is None else momentum
    numbers = (step.fold, step.keep, step.direct, step.mu if step.look else 0.0, step.eta)
    square = kernels.nesterov_step(theta, before, combined, numbers, new, new_momentum)
    return Moved(new, new_momentum, float(square))


def eta_for(contributors: float) -> float:
    """The outer rate for so many effective contributors."""
    return next(eta for least, eta in _ETA_FROM if contributors >= least)


def effective_contributors(weights: list[float]) -> float:
    """(sum w)^2 / sum w^2: how many equal workers weigh as much."""
    square = sum(w * w for w in weights)
    return sum(weights) ** 2 / square if square > 0 else float(len(weights))
