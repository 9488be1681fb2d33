"""Merge rules, chosen by name per run: when accepted updates become the next version, and by which step.

Each is a frozen dataclass whose fields are the options of a run. When a rule acts stands here, how updates
are combined in `aggregate`, how theta moves in `outer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType

from bithaul.errors import InvalidConfig, UnknownName
from bithaul.rounds import outer
from bithaul.rounds.aggregate import AGGREGATORS, Mix, Wide, aggregator_named
from bithaul.rounds.facts import Contribution, Glance, Past, RoundFacts
from bithaul.rounds.merging import (
    MergeRule,
    Plan,
    awaited,
    fraction,
    mixed,
    quorum,
    share_of_trust,
    smoothed_lag,
    weights_of,
)

LONGEST_GRACE = 60.0
SHORT_REST = 0.15  # of a round: less is better spent waiting for the merged weights


@dataclass(frozen=True)
class Sync:
    """Token-weighted average of a round's updates, then an outer Nesterov step (DiLoCo, arXiv:2311.08105).

    With eta 1 and mu 0, the default, theta becomes the plain average of the workers' weights. `sync_diloco`
    is the same barrier with the published momentum, and eta by the number of contributors (None).
    """

    eta: float | None = 1.0
    mu: float = 0.0
    max_staleness: int = 4
    aggregator: str = "mean"
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
        return facts.now >= _deadline(first, length=facts.length) or not awaited(facts)

    def too_early(self, glance: Glance) -> bool:
        if glance.first_report_at is None:
            return True
        return glance.aimed > 0 and glance.now < _deadline(glance.first_report_at, length=glance.length)

    def waits(self, *, left: float, length: float) -> bool:  # noqa: ARG002 - the protocol's signature
        return True

    def take(self, contributions: Sequence[Contribution]) -> Sequence[Contribution]:
        return sorted(contributions, key=lambda c: c.seq)

    def needs_products(self, count: int) -> bool:
        return aggregator_named(self.aggregator, count=count).needs_products

    def plan(
        self,
        taken: Sequence[Contribution],
        *,
        past: Past,  # noqa: ARG002 - the protocol's signature
        products: Wide | None = None,
    ) -> Plan:
        weights = weights_of(taken)
        eta = outer.eta_for(outer.effective_contributors(weights)) if self.eta is None else self.eta
        mix = mixed(self.aggregator, taken, weights, products, mu=self.mu)
        return Plan(mix, outer.nesterov(eta=eta, mu=self.mu) if self.momentum else outer.plain(eta))


@dataclass(frozen=True)
class BufferedNesterov:
    """No barrier: at the tick one step over whatever arrived, smaller for few reports and for lag.

    Equals `sync_diloco` bit for bit when everybody reports in time. The fraction rule and the coupling to
    lag are ours, see docs/explanation/sharing.md.
    """

    eta: float | None = None
    mu: float = 0.9
    max_staleness: int = 4
    aggregator: str = "norm_clipped_mean"
    name: str = "buffered_nesterov"
    rounds: bool = True

    @property
    def momentum(self) -> bool:
        return self.mu != 0.0

    def due(self, facts: RoundFacts) -> bool:
        """All aimed at this tick have reported; or the grace is over and a quorum came; or much later."""
        contributors = len({c.worker for c in facts.contributions})
        if not contributors:
            return False
        if not awaited(facts):
            return True
        late, grace = facts.now - facts.tick, _grace(length=facts.length)
        return (late >= grace and contributors >= quorum(facts.active)) or late >= 0.5 * facts.length

    def too_early(self, glance: Glance) -> bool:
        late = glance.now - glance.tick
        return not glance.reports or (glance.aimed > 0 and late < _grace(length=glance.length))

    def waits(self, *, left: float, length: float) -> bool:
        return left < SHORT_REST * length

    def take(self, contributions: Sequence[Contribution]) -> Sequence[Contribution]:
        return sorted(contributions, key=lambda c: c.seq)

    def needs_products(self, count: int) -> bool:
        return aggregator_named(self.aggregator, count=count).needs_products

    def plan(self, taken: Sequence[Contribution], *, past: Past, products: Wide | None = None) -> Plan:
        weights = weights_of(taken)
        rho = fraction(taken, past)
        lag = smoothed_lag(taken, past)
        full = outer.eta_for(outer.effective_contributors(weights)) if self.eta is None else self.eta
        eta = full / (1.0 + outer.LAG_ETA * lag) * rho
        mix = mixed(self.aggregator, taken, weights, products, mu=self.mu)
        if not self.momentum:
            return Plan(mix, outer.plain(eta))
        mu = max(0.0, self.mu - outer.LAG_MU * lag) ** rho
        return Plan(mix, outer.nesterov(eta=eta, mu=mu, rho=rho))


@dataclass(frozen=True)
class StalenessSgd:
    """Each update at once: theta -= lr / (1 + staleness * alpha) * u. One version per report, no momentum."""

    lr: float = 0.7
    alpha: float = 0.5
    max_staleness: int = 10
    name: str = "staleness_sgd"
    momentum: bool = False
    rounds: bool = False

    def due(self, facts: RoundFacts) -> bool:
        return bool(facts.contributions)

    def too_early(self, glance: Glance) -> bool:
        return not glance.reports

    def waits(self, *, left: float, length: float) -> bool:  # noqa: ARG002 - the protocol's signature
        return True  # for an instant: every report is merged at once

    def take(self, contributions: Sequence[Contribution]) -> Sequence[Contribution]:
        return sorted(contributions, key=lambda c: c.seq)[:1]

    def needs_products(self, count: int) -> bool:  # noqa: ARG002 - the protocol's signature
        return False

    def plan(
        self,
        taken: Sequence[Contribution],
        *,
        past: Past,
        products: Wide | None = None,  # noqa: ARG002 - the protocol's signature
    ) -> Plan:
        factors = [
            self.lr / (1.0 + c.staleness * self.alpha) * c.clip * share_of_trust(c, past) for c in taken
        ]
        return Plan(Mix("mean", tuple(factors)), outer.plain(1.0))


@dataclass(frozen=True)
class DelayedNesterov:
    """Each push at once with a share of the rate; momentum only every `buffer` pushes (arXiv:2401.09135).

    For two to four workers of wildly different speed; `buffer` should be twice their number.
    """

    eta: float = 0.7
    mu: float = 0.9
    buffer: int = 8
    max_staleness: int = 10
    name: str = "delayed_nesterov"
    momentum: bool = True
    rounds: bool = False

    def due(self, facts: RoundFacts) -> bool:
        return bool(facts.contributions)

    def too_early(self, glance: Glance) -> bool:
        return not glance.reports

    def waits(self, *, left: float, length: float) -> bool:  # noqa: ARG002 - the protocol's signature
        return True  # for an instant: every report is merged at once

    def take(self, contributions: Sequence[Contribution]) -> Sequence[Contribution]:
        return sorted(contributions, key=lambda c: c.seq)[:1]

    def needs_products(self, count: int) -> bool:  # noqa: ARG002 - the protocol's signature
        return False

    def plan(
        self,
        taken: Sequence[Contribution],
        *,
        past: Past,
        products: Wide | None = None,  # noqa: ARG002 - the protocol's signature
    ) -> Plan:
        place = (past.version - 1) % self.buffer
        mix = Mix("mean", tuple(c.clip * share_of_trust(c, past) for c in taken))
        return Plan(mix, outer.delayed_nesterov(eta=self.eta, mu=self.mu, buffer=self.buffer, place=place))


@dataclass(frozen=True)
class FedBuffSgd:
    """A buffer of `buffer` reports, their mean, no momentum: slow and safe (FedBuff, arXiv:2106.06639)."""

    eta: float = 1.0
    buffer: int = 8
    max_staleness: int = 10
    aggregator: str = "mean"
    name: str = "fedbuff_sgd"
    momentum: bool = False
    rounds: bool = False

    def due(self, facts: RoundFacts) -> bool:
        """The buffer is full; or nothing is under way and nobody will get a lease."""
        if len(facts.contributions) >= self.buffer:
            return True
        ending = not facts.work_left or facts.paused or not facts.active
        return bool(facts.contributions) and ending and not facts.leases

    def too_early(self, glance: Glance) -> bool:
        return not glance.reports or (glance.reports < self.buffer and glance.leases > 0)

    def waits(self, *, left: float, length: float) -> bool:  # noqa: ARG002 - the protocol's signature
        return False

    def take(self, contributions: Sequence[Contribution]) -> Sequence[Contribution]:
        return sorted(contributions, key=lambda c: c.seq)[: self.buffer]

    def needs_products(self, count: int) -> bool:
        return aggregator_named(self.aggregator, count=count).needs_products

    def plan(
        self,
        taken: Sequence[Contribution],
        *,
        past: Past,  # noqa: ARG002 - the protocol's signature
        products: Wide | None = None,
    ) -> Plan:
        mix = mixed(self.aggregator, taken, weights_of(taken), products, mu=0.0)
        return Plan(mix, outer.plain(self.eta))


def _deadline(first_report_at: float, *, length: float) -> float:
    """How long a barrier waits: 1.5 rounds from the first report on, two seconds at least."""
    return first_report_at + max(2.0, 1.5 * length)


def _grace(*, length: float) -> float:
    """Seconds after the tick in which late reports still count for it."""
    return min(LONGEST_GRACE, 0.1 * length)


_KINDS: Mapping[str, type] = MappingProxyType(
    {
        "sync": Sync,
        "staleness_sgd": StalenessSgd,
        "sync_diloco": Sync,
        "buffered_nesterov": BufferedNesterov,
        "delayed_nesterov": DelayedNesterov,
        "fedbuff_sgd": FedBuffSgd,
        "sparse_ef": BufferedNesterov,  # without momentum, for sparse updates (SparseLoCo, arXiv:2508.15706)
    }
)
RULES: Mapping[str, Callable[..., MergeRule]] = MappingProxyType(
    {
        **_KINDS,
        "sync_diloco": partial(Sync, eta=None, mu=0.9, aggregator="norm_clipped_mean", name="sync_diloco"),
        "sparse_ef": partial(BufferedNesterov, eta=1.0, mu=0.0, name="sparse_ef"),
    }
)
USUAL_CODEC = "int8-block-v1"
_CODECS: Mapping[str, str] = MappingProxyType({"sparse_ef": "topk-2bit-v1"})
_BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "eta": (0.0, 4.0),
        "mu": (0.0, 0.999),
        "lr": (0.0, 4.0),
        "alpha": (0.0, 100.0),
        "buffer": (1, 10_000),
        "max_staleness": (0, 1000),
    }
)
_WHOLE = ("buffer", "max_staleness")


def rule_named(name: str, options: Mapping[str, float | str] | None = None) -> MergeRule:
    """The rule with its options. `UnknownName` and `InvalidConfig` list what is known."""
    if name not in RULES:
        raise UnknownName(f"There is no merge rule {name!r}; the rules are {', '.join(RULES)}.")
    known = [f.name for f in fields(_KINDS[name]) if f.name in _BOUNDS or f.name == "aggregator"]
    values: dict[str, object] = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise InvalidConfig(
                f"Merge rule {name} has no option {key!r}; its options are {', '.join(known)}."
            )
        values[key] = _checked(name, key, value)
    return RULES[name](**values)


def codec_of(rule: str) -> str:
    """The codec that a run with this rule uses when nobody says otherwise."""
    return _CODECS.get(rule, USUAL_CODEC)


def _checked(name: str, key: str, value: float | str) -> float | str:
    if key == "aggregator":
        if value not in AGGREGATORS:
            raise UnknownName(
                f"There is no aggregator {value!r}; the aggregators are {', '.join(AGGREGATORS)}."
            )
        return value
    low, high = _BOUNDS[key]
    if not (isinstance(value, int | float) and low <= value <= high):
        raise InvalidConfig(f"Option {key} of merge rule {name} must lie between {low:g} and {high:g}.")
    return int(value) if key in _WHOLE else value
