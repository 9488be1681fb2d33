"""What all merge rules share: the protocol, the numbers of a step, and the arithmetic of a round.

`due`, `waits` and `take` look at facts; `plan` brings one step down to numbers; `step` works on any slice of
the vectors, so a merger streams through them and the result does not depend on the slicing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bithaul.rounds import outer
from bithaul.rounds.aggregate import FloatVector, Linear, Mix, Moving, Update, Wide, aggregator_named
from bithaul.rounds.facts import Contribution, Flush, Glance, Past, RoundFacts
from bithaul.rounds.outer import Moved, OuterStep

QUORUM = 0.6
QUORUM_MOST = 32


@dataclass(frozen=True)
class Plan:
    """The numbers of one step; stored with its version. The same plan gives the same bits."""

    mix: Mix
    outer: OuterStep


class Room:
    """Memory for slices of up to `values`, used again for each: fresh memory would cost more than a step."""

    def __init__(self, values: int) -> None:
        self.total = np.empty(values, np.float64)
        self.theta, self.momentum = np.empty(values, np.float32), np.empty(values, np.float32)


def step(
    plan: Plan,
    theta: FloatVector,
    momentum: FloatVector | None,
    updates: Iterable[Update],
    *,
    room: Room | None = None,
) -> Moved:
    """One slice of the next theta and momentum. All have the same length; none given is changed.

    With `room` the result lies there, valid until the room is used again.
    """
    room, size = room or Room(theta.size), theta.size
    aggregator = aggregator_named(plan.mix.aggregator)
    into = (room.theta[:size], room.momentum[:size])
    if isinstance(aggregator, Linear) and one_plain_step(plan):
        (update,) = updates
        if isinstance(update, Moving):
            rate = plan.outer.direct * plan.outer.eta
            return Moved(into[0], None, update.move(theta, plan.mix.factors[0], rate, into[0]))
        updates = (update,)
    combined = aggregator.combine(plan.mix, updates, momentum, total=room.total[:size])
    return outer.apply(plan.outer, theta, momentum, combined, into=into)


def one_plain_step(plan: Plan) -> bool:
    """Whether theta moves by one update and nothing else, so that no sum needs memory of its own."""
    return len(plan.mix.factors) == 1 and not plan.mix.centre and not plan.outer.carries


class MergeRule(Protocol):
    """See the module. Implementations are frozen dataclasses whose fields are the rule's options."""

    @property
    def name(self) -> str: ...
    @property
    def max_staleness(self) -> int: ...
    @property
    def momentum(self) -> bool:
        """Whether a momentum vector goes from version to version."""
        ...

    @property
    def rounds(self) -> bool:
        """Whether tasks end together at a tick. Without rounds each task has its full length."""
        ...

    def due(self, facts: RoundFacts) -> bool:
        """Whether to make a version now."""
        ...

    def too_early(self, glance: Glance) -> bool:
        """Whether `due` says no to every round with these sums: asked before everybody is read."""
        ...

    def waits(self, *, left: float, length: float) -> bool:
        """Whether a worker whose report is not merged yet gets no new lease so short before the tick."""
        ...

    def take(self, contributions: Sequence[Contribution]) -> Sequence[Contribution]:
        """Those that go into the next version, by seq."""
        ...

    def needs_products(self, count: int) -> bool:
        """Whether `plan` needs the inner products of so many updates."""
        ...

    def plan(self, taken: Sequence[Contribution], *, past: Past, products: Wide | None = None) -> Plan:
        """The step for what `take` gave."""
        ...


def last_aim(*, tick: float, length: float) -> float:
    """Leases aimed beyond it belong to the next round."""
    return tick + 0.5 * length


def awaited(facts: RoundFacts) -> set[str]:
    """Workers whose report belongs to this round: with a lease aimed at its tick, or about to ask."""
    late = last_aim(tick=facts.tick, length=facts.length)
    waiting = {lease.worker for lease in facts.leases if lease.on_current_base and lease.aimed_at <= late}
    if facts.work_left and not facts.paused:
        busy = {lease.worker for lease in facts.leases}
        reported = {c.worker for c in facts.contributions}
        waiting |= facts.workers - busy - reported
    return waiting


def quorum(active: int) -> int:
    """Contributors that make a full step: 60 % of the active workers, 1 to 32."""
    return min(max(math.ceil(QUORUM * active), 1), QUORUM_MOST)


def weights_of(given: Sequence[Contribution]) -> list[float]:
    """tokens * (1 + staleness)^-0.5 * trust, normalised to a sum of 1; equal when all are 0."""
    weights = [c.tokens * (1.0 + c.staleness) ** -0.5 * c.trust for c in given]
    total = math.fsum(weights)
    if total <= 0:
        return [1.0 / len(weights) for _ in weights]
    return [w / total for w in weights]


def share_of_trust(given: Contribution, past: Past) -> float:
    """Its worker's weight against the best of the fleet, for rules that merge one report at a time."""
    return given.trust / max(given.trust, past.trust) if given.trust > 0 else 0.0


def fraction(taken: Sequence[Contribution], past: Past) -> float:
    """rho: the share of a full step that so many tokens are worth, at most 1.

    When every active worker is in, it is a full step, however many tokens they have.
    """
    if 0 < past.active <= len({c.worker for c in taken}):
        return 1.0
    sizes = [*past.reports, *(c.tokens for c in taken)][-64:]
    full = quorum(past.active) * statistics.median(sizes)
    return min(1.0, sum(c.tokens for c in taken) / full) if full > 0 else 1.0


def smoothed_lag(taken: Sequence[Contribution], past: Past) -> float:
    """Token-weighted mean staleness over this step and the seven before."""
    tokens = sum(c.tokens for c in taken)
    lag = sum(c.tokens * c.staleness for c in taken)
    here = Flush(tokens, lag / tokens if tokens else 0.0)
    last = [*past.flushes, here][-outer.SMOOTHED_FLUSHES :]
    weight = sum(f.tokens for f in last)
    return sum(f.tokens * f.staleness for f in last) / weight if weight else 0.0


def mixed(
    name: str, taken: Sequence[Contribution], weights: list[float], products: Wide | None, *, mu: float
) -> Mix:
    return aggregator_named(name, count=len(taken), mu=mu).mix(taken, weights, products)
