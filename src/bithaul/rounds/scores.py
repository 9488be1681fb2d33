"""The loss score: which updates are looked at, on which examples, and what it does to a worker's weight.

Gate 9 of exchange.md §9 (after Gauntlet, 2505.21684), pure: chances, lengths and losses come in, decisions go
out. An update lowers the loss more on the examples that it was trained on than on others; a copy or noise
does not. The difference is taken in its own standard errors, so one scale serves early and late updates, long
and short ones (docs/lab/0028). A single score decides nothing; the average of several is a factor on trust.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TOKENS = 2048  # targets of each of the two samples, at most
FEWEST_TARGETS = 4 * TOKENS  # of a corpus; in a smaller one a task leaves too little that it was not given
PARTS = 8  # a sample is looked at in so many parts, whose spread says how sure the difference is
SURE = 3.0  # standard errors that count as a whole point
SHARE = 0.05  # of a steady worker's reports
EAGER = 0.5  # of those of a worker about which too little is known, or whose weight it lowers
FEWEST = 6  # scores before the average says anything
MEMORY = 10  # scores that the average looks back on
FULL = 0.5  # from this average on the weight is whole
LEAST = 0.25  # the factor at an average of 0 and below
TIME = 0.05  # of the coordinator's time is spent on scores, at most
WAITING = 8  # updates that are kept to be scored, with their bases; the oldest go first

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fit:
    """How a worker's updates fit its tasks: the average of its scores, -1 to 1, and how many they are."""

    average: float = 0.0
    count: int = 0

    @property
    def known(self) -> bool:
        return self.count >= FEWEST

    @property
    def factor(self) -> float:
        """On the worker's weight: 1 while too little is known, never below `LEAST`."""
        if not self.known:
            return 1.0
        share = min(1.0, max(0.0, self.average / FULL))
        return LEAST + (1.0 - LEAST) * share

    @property
    def why(self) -> str:
        """Why the factor is below 1; empty when it is not."""
        if self.factor == 1.0:
            return ""
        return (
            "its updates lower the loss on its own examples hardly more than on others "
            f"(average score {self.average:.2f}, from {FULL:g} on it counts fully)"
        )

    @property
    def way_out(self) -> str:
        return "" if self.factor == 1.0 else "updates that are trained on the examples of its tasks"

    def with_score(self, value: float) -> Fit:
        """After one more score: the mean of the first `MEMORY`, then a moving average."""
        rate = 1.0 / min(self.count + 1, MEMORY)
        return Fit(self.average + rate * (value - self.average), self.count + 1)


def drawn(chance: float, fit: Fit) -> bool:
    """Whether an accepted report shall be scored; `chance` is uniform in [0, 1)."""
    return chance < (SHARE if fit.known and fit.factor == 1.0 else EAGER)


def rest_after(seconds: float) -> float:
    """Seconds to wait after a score that took so long, so that scores take `TIME` of the time at most."""
    return seconds * (1.0 / TIME - 1.0)


@dataclass(frozen=True)
class Sample:
    """Numbers of examples in `PARTS` parts each, of about as many targets: `own` of the task, `other` not."""

    own: Sequence[Sequence[int]]
    other: Sequence[Sequence[int]]


def sample(used: Iterable[int], lengths: Lengths, *, seed: int) -> Sample | None:
    """What an update is looked at with, drawn anew by `seed`; None: there are too few examples.

    `used` are the numbers of the examples that its task used, `lengths` the targets of every example of the
    corpus. Nobody who trains may know `seed`, or it would be enough to train on what is looked at.
    """
    random = np.random.default_rng(seed)
    mine = np.unique(np.fromiter(used, np.int64))
    others = np.setdiff1d(np.arange(len(lengths)), mine, assume_unique=True)
    mine, others = mine[lengths[mine] > 0], others[lengths[others] > 0]
    most = min(TOKENS, int(lengths[mine].sum()), int(lengths[others].sum()))
    own, other = (_up_to(most, random.permutation(numbers), lengths) for numbers in (mine, others))
    if min(len(own), len(other)) < PARTS:
        return None
    return Sample(*([found[i::PARTS] for i in range(PARTS)] for found in (own, other)))


def _up_to(targets: int, numbers: npt.NDArray[np.int64], lengths: Lengths) -> list[int]:
    """The first of `numbers` that have no more targets together."""
    inside = np.cumsum(lengths[numbers]) <= targets
    return [int(number) for number in numbers[inside]]


@dataclass(frozen=True)
class Score:
    """`own` and `other`: how far the loss falls on both samples, in nats a token. `value`: -1 to 1."""

    own: float
    other: float
    value: float


def score(own: Sequence[float], other: Sequence[float]) -> Score | None:
    """From how far the loss falls on each part of both samples; None where a loss is not finite.

    The difference of the means in standard errors (Welch), where `SURE` of them are a whole point. Above 0
    only for an update that lowers the loss on its own examples at all.
    """
    falls = [np.asarray(values, np.float64) for values in (own, other)]
    if not all(np.isfinite(values).all() for values in falls):
        return None
    mine, others = (float(values.mean()) for values in falls)
    error = math.sqrt(sum(float(values.var(ddof=1)) / len(values) for values in falls))
    difference = mine - others
    value = min(1.0, max(-1.0, difference / (SURE * error))) if error > 0 else float(np.sign(difference))
    return Score(mine, others, value if mine > 0 else min(0.0, value))
