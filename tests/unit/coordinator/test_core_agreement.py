"""The gate `agreement`: how far each merged update points where others do is noted, and decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bithaul.coordinator.queries.workerpage import worker_page

House = Any


def one_round(house: House, **ways: float) -> None:
    """Each worker reports `way` times the same vector, plus noise of its own."""
    size = house.run.layout.size
    way = np.random.default_rng(1).standard_normal(size) * 1e-3
    for i, (name, factor) in enumerate(ways.items()):
        noise = np.random.default_rng([house.newest.version, i]).standard_normal(size) * 1e-4
        house.report(name, house.claim(name), update=factor * way + noise)
    house.clock.time += 10.0
    assert house.merge() is not None


def told(house: House, worker: str) -> list[float | None]:
    """The newest first."""
    return [report.agreement for report in worker_page(house.c, worker).reports]


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_whoever_points_elsewhere_is_noted_and_merged(make_house: Callable[..., House], mu: float) -> None:
    """Catches a score that refuses, one of another report, and the sign of a step."""
    house = make_house()
    house.create(gates=["agreement"], merge_options={"mu": mu, "eta": 1.0})
    house.register("ann", "bob", "eve")
    one_round(house, ann=1.0, bob=1.0, eve=1.0)
    one_round(house, ann=1.0, bob=1.0, eve=-0.5)
    for name in ("ann", "bob", "eve"):
        assert [report.verdict for report in worker_page(house.c, name).reports] == ["accepted"] * 2
    (ann, _), (bob, _), (eve, before) = (told(house, name) for name in ("ann", "bob", "eve"))
    assert ann > 0.9
    assert bob > 0.9
    assert before > 0.9
    assert eve < -0.9


def test_nothing_is_noted_where_nobody_looks(house: House) -> None:
    """Catches a second pass over every update of a usual run."""
    one_round(house, ann=1.0, bob=1.0)
    assert told(house, "ann") == [None]
    (report,) = worker_page(house.c, "ann").reports
    assert report.loss_change == -1.0


def test_noting_changes_no_bit_of_the_weights(make_house: Callable[..., House]) -> None:
    thetas = []
    for gates in ([], ["agreement"]):
        house = make_house()
        house.create(gates=gates, merge_rule="buffered_nesterov")
        house.register("ann", "bob")
        one_round(house, ann=1.0, bob=2.0)
        thetas.append(house.newest.sha256)
    assert thetas[0] == thetas[1]
