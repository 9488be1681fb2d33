"""Aggregators: what they do with honest updates, and what poison may do to them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.errors import UnknownName
from bithaul.rounds.aggregate import AGGREGATORS, Products, aggregator_named
from bithaul.rounds.facts import Contribution
from bithaul.rounds.merging import weights_of

Vector = npt.NDArray[np.float64]
ROBUST = ("trimmed_mean", "coordinate_median", "krum", "multi_krum", "centered_clip")


def combine(
    name: str,
    updates: list[Vector],
    *,
    momentum: npt.NDArray[np.float32] | None = None,
    mu: float = 0.0,
    border: int | None = None,
    **changes: float,
) -> Vector:
    """D of equal workers; `border` cuts the vectors in two, `changes` go into every contribution."""
    given_ = [
        replace(Contribution(i + 1, f"w{i}", 100, 0, 0.0), norm=float(np.linalg.norm(u)), **changes)
        for i, u in enumerate(updates)
    ]
    rule = aggregator_named(name, count=len(updates), mu=mu)
    products = None
    if rule.needs_products:
        total = Products(len(updates))
        total.add(momentum, updates)
        products = total.matrix
    mix = rule.mix(given_, weights_of(given_), products)
    found = aggregator_named(mix.aggregator)
    size = updates[0].size
    centre = np.zeros(size, np.float32) if momentum is None else momentum
    edges = [0, size] if border is None else [0, border, size]
    parts = itertools.pairwise(edges)
    return np.concatenate(
        [
            found.combine(mix, [u[a:b] for u in updates], centre[a:b], total=np.full(b - a, np.nan))
            for a, b in parts
        ]
    )


def honest(count: int, *, size: int = 40, seed: int = 0) -> list[Vector]:
    """Noisy copies of a vector of ones."""
    random = np.random.default_rng(seed)
    return [1.0 + 0.3 * random.standard_normal(size) for _ in range(count)]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_equal_updates_give_that_update(name: str) -> None:
    """Catches weights that do not add up to one."""
    same = [np.linspace(-1, 1, 20)] * 7
    assert combine(name, same) == pytest.approx(same[0], abs=1e-9)


@pytest.mark.parametrize("name", AGGREGATORS)
@given(st.integers(1, 9), st.integers(1, 39), st.integers(0, 50))
def test_slicing_changes_no_bit(name: str, count: int, border: int, seed: int) -> None:
    updates = honest(count, seed=seed)
    momentum = np.ones(40, np.float32)
    whole = combine(name, updates, momentum=momentum, mu=0.9)
    assert np.array_equal(whole, combine(name, updates, momentum=momentum, mu=0.9, border=border))


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("factor", [-10.0, 1e6])
def test_two_of_eight_poisoned_updates_do_not_turn_the_step(name: str, factor: float) -> None:
    """Catches a robust rule that is a mean in disguise; the mean itself must fail here."""
    updates = honest(8)
    for i in (2, 5):
        updates[i] = factor * updates[i]
    found = combine(name, updates)
    assert np.linalg.norm(found - 1.0) < 0.5 * np.linalg.norm(np.ones(40)), np.linalg.norm(found - 1.0)
    assert np.linalg.norm(combine("mean", updates) - 1.0) > 2 * np.linalg.norm(np.ones(40))


def test_norm_clipping_bounds_what_one_can_do() -> None:
    """At most twice the median norm counts: one in eight at 10x moves D by a quarter, not by ten eighths."""
    updates = honest(8)
    updates[3] = -10.0 * updates[3]
    limit = 2 * np.median([np.linalg.norm(u) for u in updates])
    clipped = combine("norm_clipped_mean", updates)
    poison = updates[3] * limit / np.linalg.norm(updates[3])
    expected = (sum(u for i, u in enumerate(updates) if i != 3) + poison) / 8
    assert clipped == pytest.approx(expected, rel=1e-6)
    assert float(clipped @ np.ones(40)) > 0


def test_norms_are_compared_per_root_of_the_steps() -> None:
    """A task of four times the steps may be twice as large. Catches clipping of slow and long tasks."""
    given_ = [Contribution(i, f"w{i}", 100, 0, 0.0, norm=1.0, steps=1) for i in range(4)]
    given_.append(Contribution(9, "long", 100, 0, 0.0, norm=4.0, steps=4))
    mix = aggregator_named("norm_clipped_mean").mix(given_, weights_of(given_), None)
    assert mix.factors == pytest.approx((0.2,) * 5)
    worse = [*given_[:-1], replace(given_[-1], norm=16.0)]
    assert aggregator_named("norm_clipped_mean").mix(worse, weights_of(worse), None).factors[-1] == (
        pytest.approx(0.2 * 4 / 16)
    )


def test_a_clip_factor_of_a_gate_counts_everywhere() -> None:
    """Catches a gate whose verdict the merge forgets."""
    for name in AGGREGATORS:
        assert combine(name, [np.ones(10)] * 6, clip=0.5) == pytest.approx(np.full(10, 0.5), rel=1e-9), name


def test_trimmed_mean_and_median_against_golden_numbers() -> None:
    column = [np.array([float(x)]) for x in (9, 1, 2, 100, 4, -50)]
    assert combine("trimmed_mean", column) == pytest.approx([(2 + 4) / 2])
    assert combine("coordinate_median", column) == pytest.approx([3.0])
    assert combine("coordinate_median", [*column, np.array([3.0])]) == pytest.approx([3.0])


def test_krum_takes_the_one_amid_the_others() -> None:
    column = [np.array([float(x)]) for x in (0.0, 1.0, 1.1, 1.2, 50.0)]
    assert combine("krum", column) == pytest.approx([1.1])
    assert combine("multi_krum", column) == pytest.approx([(0.0 + 1.0 + 1.1 + 1.2) / 4])


def test_centred_clip_starts_from_the_momentum() -> None:
    """Half of the workers lie: only the history says which. Catches a centre that is not used."""
    good, bad = np.ones(20), -3.0 * np.ones(20)
    updates = [good] * 4 + [bad] * 4
    momentum = np.full(20, 10.0, np.float32)
    with_history = combine("centered_clip", updates, momentum=momentum, mu=0.9)
    assert np.linalg.norm(with_history - good) < np.linalg.norm(combine("centered_clip", updates) - good)


def test_no_trust_no_vote() -> None:
    """Catches a coordinate-wise rule that counts the head of somebody who was set aside."""
    column = [Contribution(i, f"w{i}", 100, 0, 0.0, trust=float(i != 5)) for i in range(6)]
    values = [np.array([1.0])] * 5 + [np.array([1e9])]
    for name in ("mean", "trimmed_mean", "coordinate_median"):
        rule = aggregator_named(name)
        mix = rule.mix(column, weights_of(column), None)
        assert rule.combine(mix, values, None, total=np.full(1, np.nan)) == pytest.approx([1.0]), name


def test_few_updates_fall_back_and_unknown_names_list_the_known() -> None:
    for name in ROBUST:
        assert aggregator_named(name, count=4).name == "norm_clipped_mean"
        assert aggregator_named(name, count=5).name == name
    with pytest.raises(UnknownName, match="krum, multi_krum"):
        aggregator_named("average")
