"""Aggregators: how the updates of one step become one vector D, chosen by name.

All of them work on slices of the vectors, so a merger streams. What needs whole vectors is brought down to
numbers first: norms stand in the ledger, and Krum and centred clipping follow from the inner products of the
updates and the momentum, because what they return is a linear combination of these. The coordinate-wise ones
need nothing but the slice. A `Mix` holds these numbers; the same mix gives the same bits, however sliced.

Robust rules are undefined for few contributors: below `fewest` the norm-clipped mean takes their place.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bithaul.errors import UnknownName
from bithaul.rounds.facts import Contribution

FloatVector = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Values = FloatVector | Wide


class Encoded(Protocol):
    """A slice of an update as it came (`exchange.codecs`): adding it up needs no decoded copy."""

    def values(self) -> Values: ...
    def add_to(self, total: Wide, factor: float, *, fresh: bool) -> None: ...


@runtime_checkable
class Moving(Protocol):
    """A slice that takes a plain step by itself, in one pass: what a merge of one update mostly is."""

    def move(self, theta: FloatVector, factor: float, rate: float, new: FloatVector) -> float:
        """`new = theta - rate * (factor * values)`, rounded once; returns |new - theta|^2."""
        ...


Update = Values | Encoded

NORM_FACTOR = 2.0  # norm-clipped mean: times the median of the round, per root of the inner steps
PRODUCT_VALUES = 65_536  # values summed at once; fixed, so that products do not depend on the merger's memory


@dataclass(frozen=True)
class Mix:
    """How to combine one step's updates: a factor each, and one for the momentum (`centre`)."""

    aggregator: str
    factors: tuple[float, ...]
    centre: float = 0.0


class Products:
    """Inner products of the vectors (momentum, u_1, ..., u_n), summed slice by slice."""

    def __init__(self, count: int) -> None:
        self._sum = np.zeros((count + 1, count + 1))

    def add(self, momentum: FloatVector | None, updates: Sequence[Update]) -> None:
        decoded = [_values(update) for update in updates]
        rows = np.zeros((len(decoded) + 1, decoded[0].size))
        if momentum is not None:
            rows[0] = momentum
        for row, values in zip(rows[1:], decoded, strict=True):
            row[:] = values
        self._sum += np.einsum("ik,jk->ij", rows, rows)

    @property
    def matrix(self) -> Wide:
        return self._sum


class Aggregator(Protocol):
    """Implementations are frozen dataclasses. `weights` are the updates' normalised ones, in order."""

    @property
    def name(self) -> str: ...
    @property
    def fewest(self) -> int:
        """Contributions below which the rule is not defined."""
        ...

    @property
    def needs_products(self) -> bool: ...

    def mix(self, given: Sequence[Contribution], weights: Sequence[float], products: Wide | None) -> Mix: ...

    def combine(
        self, mix: Mix, updates: Iterable[Update], momentum: FloatVector | None, *, total: Wide
    ) -> Wide:
        """D, in `total` or in memory of its own."""
        ...


@dataclass(frozen=True)
class Linear:
    """D is a linear combination; one pass, one slice in memory."""

    fewest: int = 1
    needs_products: bool = False

    def combine(
        self, mix: Mix, updates: Iterable[Update], momentum: FloatVector | None, *, total: Wide
    ) -> Wide:
        for i, (factor, update) in enumerate(zip(mix.factors, updates, strict=True)):
            if not isinstance(update, np.ndarray):
                update.add_to(total, factor, fresh=i == 0)
            elif i == 0:
                np.multiply(update, factor, out=total, dtype=np.float64)
            else:
                total += np.multiply(update, factor, dtype=np.float64)
        if mix.centre and momentum is not None:
            total += mix.centre * momentum.astype(np.float64)
        return total


@dataclass(frozen=True)
class Mean(Linear):
    """The weighted mean. Defends against nothing."""

    name: str = "mean"

    def mix(
        self,
        given: Sequence[Contribution],
        weights: Sequence[float],
        products: Wide | None,  # noqa: ARG002 - the protocol's signature
    ) -> Mix:
        return Mix(self.name, _clipped(given, weights))


@dataclass(frozen=True)
class NormClippedMean(Linear):
    """The weighted mean of updates clipped to twice the round's median norm over sqrt(inner steps)."""

    name: str = "norm_clipped_mean"

    def mix(
        self,
        given: Sequence[Contribution],
        weights: Sequence[float],
        products: Wide | None,  # noqa: ARG002 - the protocol's signature
    ) -> Mix:
        sizes = [c.clip * c.norm / math.sqrt(max(1, c.steps)) for c in given]
        known = [s for s in sizes if s > 0]
        limit = NORM_FACTOR * statistics.median(known) if known else math.inf
        factors = [
            f if size <= limit else f * limit / size
            for f, size in zip(_clipped(given, weights), sizes, strict=True)
        ]
        return Mix(self.name, tuple(factors))


@dataclass(frozen=True)
class TrimmedMean:
    """Per coordinate: without the `share` largest and as many smallest, the plain mean (Yin et al. 2018)."""

    share: float = 0.2
    name: str = "trimmed_mean"
    fewest: int = 5
    needs_products: bool = False

    def mix(
        self,
        given: Sequence[Contribution],
        weights: Sequence[float],
        products: Wide | None,  # noqa: ARG002 - the protocol's signature
    ) -> Mix:
        return Mix(self.name, _counted(given, weights))

    def combine(
        self,
        mix: Mix,
        updates: Iterable[Update],
        momentum: FloatVector | None,  # noqa: ARG002 - the protocol's signature
        *,
        total: Wide,
    ) -> Wide:
        stack = _stack(mix, updates, total.size)
        cut = min(math.ceil(self.share * len(stack)), (len(stack) - 1) // 2)
        stack.sort(axis=0)
        kept: Wide = np.add.reduce(stack[cut : len(stack) - cut], axis=0)
        kept /= len(stack) - 2 * cut
        return kept


@dataclass(frozen=True)
class CoordinateMedian:
    """Per coordinate the median; the middle two are averaged."""

    name: str = "coordinate_median"
    fewest: int = 5
    needs_products: bool = False

    def mix(
        self,
        given: Sequence[Contribution],
        weights: Sequence[float],
        products: Wide | None,  # noqa: ARG002 - the protocol's signature
    ) -> Mix:
        return Mix(self.name, _counted(given, weights))

    def combine(
        self,
        mix: Mix,
        updates: Iterable[Update],
        momentum: FloatVector | None,  # noqa: ARG002 - the protocol's signature
        *,
        total: Wide,
    ) -> Wide:
        stack = _stack(mix, updates, total.size)
        stack.sort(axis=0)
        half = len(stack) // 2
        middle: Wide = stack[half].copy()
        if len(stack) % 2 == 0:
            middle += stack[half - 1]
            middle /= 2
        return middle


@dataclass(frozen=True)
class Krum(Linear):
    """The `keep` updates nearest to their neighbours, plain mean (Blanchard et al. 2017); 0: n - f.

    f, the number of bad updates it stands, is the largest with n >= 2 f + 3.
    """

    keep: int = 1
    name: str = "krum"
    fewest: int = 5
    needs_products: bool = True

    def mix(self, given: Sequence[Contribution], weights: Sequence[float], products: Wide | None) -> Mix:
        if products is None:
            raise ValueError(f"{self.name} needs the inner products of the updates")
        counted = [i for i, w in enumerate(weights) if w > 0]
        n = len(counted)
        bad = max(0, (n - 3) // 2)
        clips = [given[i].clip for i in counted]
        gram = products[np.ix_([i + 1 for i in counted], [i + 1 for i in counted])] * np.outer(clips, clips)
        square = np.maximum(np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram, 0.0)
        np.fill_diagonal(square, math.inf)
        scores = np.sort(square, axis=1)[:, : max(1, n - bad - 2)].sum(axis=1)
        kept = min(n, self.keep or n - bad)
        chosen = {counted[i] for i in np.argsort(scores, kind="stable")[:kept]}
        return Mix(self.name, tuple(c.clip / kept if i in chosen else 0.0 for i, c in enumerate(given)))


@dataclass(frozen=True)
class CenteredClip(Linear):
    """From a centre, move by the mean of differences clipped to `radius`, a few times (Karimireddy 2021).

    The centre is the momentum, scaled back to one step by (1 - mu); without momentum it is zero. The radius
    is the median distance from the centre, so it needs no tuning (ours).
    """

    scale: float = 0.1  # 1 - mu
    iterations: int = 3
    name: str = "centered_clip"
    fewest: int = 5
    needs_products: bool = True

    def mix(self, given: Sequence[Contribution], weights: Sequence[float], products: Wide | None) -> Mix:
        if products is None:
            raise ValueError(f"{self.name} needs the inner products of the updates")
        clips = np.array([1.0, *(c.clip for c in given)])
        gram = products * np.outer(clips, clips)
        here = np.zeros(len(gram))  # the point, as coefficients of (momentum, u_1, ...)
        here[0] = self.scale if gram[0, 0] > 0 else 0.0
        radius = statistics.median(_distances(gram, here)) if len(given) else 0.0
        for _ in range(self.iterations):
            away = _distances(gram, here)
            pull = [w * (1.0 if d <= radius else radius / d) for w, d in zip(weights, away, strict=True)]
            here *= 1.0 - math.fsum(pull)
            here[1:] += pull
        return Mix(self.name, tuple(float(x) for x in here[1:] * clips[1:]), centre=float(here[0]))


def _distances(gram: Wide, here: Wide) -> list[float]:
    """Of each update from the point."""
    found = []
    for i in range(1, len(gram)):
        difference = -here
        difference[i] += 1.0
        square = float(np.einsum("i,ij,j", difference, gram, difference))
        found.append(math.sqrt(max(0.0, square)))
    return found


def _clipped(given: Sequence[Contribution], weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(w if c.clip == 1.0 else w * c.clip for w, c in zip(weights, given, strict=True))


def _counted(given: Sequence[Contribution], weights: Sequence[float]) -> tuple[float, ...]:
    """Coordinate-wise rules count heads: a weight of zero leaves an update out, others are all alike."""
    return tuple(c.clip if w > 0 else 0.0 for w, c in zip(weights, given, strict=True))


def _stack(mix: Mix, updates: Iterable[Update], size: int) -> Wide:
    """The updates that count, one a row."""
    stack = np.empty((sum(f != 0.0 for f in mix.factors), size), np.float64)
    row = 0
    for factor, update in zip(mix.factors, updates, strict=True):
        if factor != 0.0:
            np.multiply(_values(update), factor, out=stack[row], dtype=np.float64)
            row += 1
    return stack


def _values(update: Update) -> Values:
    return update if isinstance(update, np.ndarray) else update.values()


AGGREGATORS: Mapping[str, Callable[..., Aggregator]] = MappingProxyType(
    {
        "mean": Mean,
        "norm_clipped_mean": NormClippedMean,
        "trimmed_mean": TrimmedMean,
        "coordinate_median": CoordinateMedian,
        "krum": Krum,
        "multi_krum": lambda: Krum(keep=0, name="multi_krum"),
        "centered_clip": CenteredClip,
    }
)


def aggregator_named(name: str, *, count: int | None = None, mu: float = 0.0) -> Aggregator:
    """The aggregator of that name, or what takes its place for so few updates as `count`.

    `mu` is the outer momentum's decay. `UnknownName` lists the known names.
    """
    if name not in AGGREGATORS:
        raise UnknownName(f"There is no aggregator {name!r}; the aggregators are {', '.join(AGGREGATORS)}.")
    found = AGGREGATORS[name]()
    if count is not None and count < found.fewest:
        return NormClippedMean()
    return replace(found, scale=1.0 - mu) if isinstance(found, CenteredClip) else found
