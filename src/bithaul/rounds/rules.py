"""Merge rules: when accepted updates become the next version, and how.

A rule is chosen by name per run. `due` and `take` look at facts; `step` works on any slice of the vectors,
so a merger streams through them and the result does not depend on the slicing. Signs: an update u is
theta_start - theta_end, so subtracting it moves theta where the worker went.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bithaul.errors import InvalidConfig, UnknownName

FloatVector = npt.NDArray[np.float32]
Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contribution:
    """One accepted update that is in no version yet."""

    seq: int  # of the ledger
    worker: str
    tokens: int
    staleness: int  # versions made since its base, when it is merged
    received_at: float


@dataclass(frozen=True)
class OpenLease:
    worker: str
    on_current_base: bool
    aimed_at: float  # planned end


@dataclass(frozen=True)
class RoundFacts:
    """What `due` looks at. `contributions` are sorted by seq; `workers` may take work and are alive."""

    now: float
    tick: float  # planned end of the round
    length: float  # planned length of the round in seconds
    contributions: Sequence[Contribution]
    leases: Sequence[OpenLease]
    workers: frozenset[str]
    work_left: bool  # False: the budget is covered, nobody will get a new lease
    paused: bool


class MergeRule(Protocol):
    """See the module. Implementations are frozen dataclasses whose fields are the rule's options."""

    @property
    def name(self) -> str: ...
    @property
    def max_staleness(self) -> int: ...
    @property
    def momentum(self) -> bool:
        """Whether `step` carries a momentum vector from version to version."""
        ...

    @property
    def rounds(self) -> bool:
        """Whether tasks end together at a tick. Without rounds each task has its full length."""
        ...

    def due(self, facts: RoundFacts) -> bool:
        """Whether to make a version now."""
        ...

    def take(self, contributions: Sequence[Contribution]) -> Sequence[Contribution]:
        """Those that go into the next version, by seq."""
        ...

    def shares(self, contributions: Sequence[Contribution]) -> list[float]:
        """The factor of each taken update, in the same order."""
        ...

    def step(
        self,
        theta: FloatVector,
        momentum: FloatVector | None,
        updates: Iterable[Values],
        shares: Sequence[float],
    ) -> tuple[FloatVector, FloatVector | None]:
        """One slice of the next theta and momentum. All arrays have the same length; none is changed."""
        ...


@dataclass(frozen=True)
class Sync:
    """Token-weighted average of a round's updates, then an outer Nesterov step (DiLoCo, arXiv:2311.08105).

    With eta 1 and mu 0, the default, theta becomes the plain average of the workers' weights.
    """

    eta: float = 1.0
    mu: float = 0.0
    max_staleness: int = 4
    name: str = "sync"
    rounds: bool = True

    @property
    def momentum(self) -> bool:
        return self.mu != 0.0

    def due(self, facts: RoundFacts) -> bool:
        """Everybody expected has reported; or 1.5 round lengths (2 s at least) after the first report."""
        if not facts.contributions:
            return False
        first = min(c.received_at for c in facts.contributions)
        if facts.now >= first + max(2.0, 1.5 * facts.length):
            return True
        return not self._awaited(facts)

    def _awaited(self, facts: RoundFacts) -> set[str]:
        late = facts.tick + 0.5 * facts.length  # leases aimed beyond belong to the next round
        waiting = {lease.worker for lease in facts.leases if lease.on_current_base and lease.aimed_at <= late}
        if facts.work_left and not facts.paused:
            busy = {lease.worker for lease in facts.leases}
            reported = {c.worker for c in facts.contributions}
            waiting |= facts.workers - busy - reported
        return waiting

    def take(self, contributions: Sequence[Contribution]) -> Sequence[Contribution]:
        return sorted(contributions, key=lambda c: c.seq)

    def shares(self, contributions: Sequence[Contribution]) -> list[float]:
        weights = [c.tokens * (1.0 + c.staleness) ** -0.5 for c in contributions]
        total = math.fsum(weights)
        if total <= 0:
            return [1.0 / len(weights) for _ in weights]
        return [w / total for w in weights]

    def step(
        self,
        theta: FloatVector,
        momentum: FloatVector | None,
        updates: Iterable[Values],
        shares: Sequence[float],
    ) -> tuple[FloatVector, FloatVector | None]:
        mean = np.zeros(theta.shape, np.float64)
        for share, update in zip(shares, updates, strict=True):
            mean += update if share == 1.0 else share * update.astype(np.float64)
        if not self.momentum:
            if self.eta != 1.0:
                mean *= self.eta
            return np.subtract(theta, mean).astype(np.float32), None
        carried = mean.copy() if momentum is None else mean + self.mu * momentum.astype(np.float64)
        new_momentum = carried.astype(np.float32)
        move = self.eta * (mean + self.mu * new_momentum.astype(np.float64))
        return np.subtract(theta, move).astype(np.float32), new_momentum


@dataclass(frozen=True)
class StalenessSgd:
    """Each update at once: theta -= lr / (1 + staleness * alpha) * u. One version per report, no momentum."""

    lr: float = 0.7
    alpha: float = 0.5
    max_staleness: int = 10
    name: str = "staleness_sgd"
    rounds: bool = False

    @property
    def momentum(self) -> bool:
        return False

    def due(self, facts: RoundFacts) -> bool:
        return bool(facts.contributions)

    def take(self, contributions: Sequence[Contribution]) -> Sequence[Contribution]:
        return sorted(contributions, key=lambda c: c.seq)[:1]

    def shares(self, contributions: Sequence[Contribution]) -> list[float]:
        return [self.lr / (1.0 + c.staleness * self.alpha) for c in contributions]

    def step(
        self,
        theta: FloatVector,
        momentum: FloatVector | None,  # noqa: ARG002 - the protocol's signature
        updates: Iterable[Values],
        shares: Sequence[float],
    ) -> tuple[FloatVector, FloatVector | None]:
        move = np.zeros(theta.shape, np.float64)
        for share, update in zip(shares, updates, strict=True):
            move += share * update.astype(np.float64)
        return np.subtract(theta, move).astype(np.float32), None


RULES: Mapping[str, Callable[..., MergeRule]] = MappingProxyType(
    {"sync": Sync, "staleness_sgd": StalenessSgd}
)
_BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "eta": (0.0, 4.0),
        "mu": (0.0, 0.999),
        "lr": (0.0, 4.0),
        "alpha": (0.0, 100.0),
        "max_staleness": (0, 1000),
    }
)


def rule_named(name: str, options: Mapping[str, float] | None = None) -> MergeRule:
    """The rule with its options. `UnknownName` and `InvalidConfig` list what is known."""
    if name not in RULES:
        raise UnknownName(f"There is no merge rule {name!r}; the rules are {', '.join(RULES)}.")
    options = dict(options or {})
    known = [f.name for f in fields(Sync if name == "sync" else StalenessSgd) if f.name in _BOUNDS]
    for key, value in options.items():
        if key not in known:
            raise InvalidConfig(
                f"Merge rule {name} has no option {key!r}; its options are {', '.join(known)}."
            )
        low, high = _BOUNDS[key]
        if not (isinstance(value, int | float) and low <= value <= high):
            raise InvalidConfig(f"Option {key} of merge rule {name} must lie between {low:g} and {high:g}.")
    if "max_staleness" in options:
        options["max_staleness"] = int(options["max_staleness"])
    return RULES[name](**options)
