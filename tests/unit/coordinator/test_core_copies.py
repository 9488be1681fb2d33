"""The gate `copy`: near copies of sparse updates are refused, honest ones and dense ones are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bithaul.coordinator.context import CrashPoints
from bithaul.coordinator.lookalikes import Lookalikes
from bithaul.exchange.codecs import codec_named
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of

House = Any
Vector = np.ndarray[Any, np.dtype[np.float32]]
WIDE = ModelConfig(
    vocab_size=16, hidden_size=256, intermediate_size=1024, num_layers=1, num_heads=2, context_length=16
)
SIZE = layout_of(WIDE).size


def update(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(SIZE, np.float32) * np.float32(1e-3)


@pytest.fixture
def begin(make_house: Callable[..., House]) -> Callable[..., House]:
    def begin(**changes: Any) -> House:
        house = make_house()
        wanted = {"codec": "topk-2bit-v1", "merge_rule": "sparse_ef", "gates": ["copy"], **changes}
        house.create(model=WIDE, **wanted)
        for name in ("ann", "bob"):
            register(house, name)
        return house

    return begin


def register(house: House, name: str) -> None:
    from bithaul.coordinator.commands.register_worker import register_worker
    from bithaul.exchange.messages import Capabilities, RegisterRequest
    from bithaul.exchange.weights import WEIGHT_FORMATS

    able = Capabilities(device="t", threads=1, memory_bytes=1, tokens_per_second=70.0, software="0")
    request = RegisterRequest(
        codecs=["topk-2bit-v1", "int8-block-v1"],
        weight_formats=list(WEIGHT_FORMATS),
        layout_hash=layout_of(WIDE).hash,
        capabilities=able,
    )
    register_worker(house.c, name, request)


def payload(house: House, vector: Vector) -> bytes:
    return bytes(codec_named(house.run.codec).encode(vector, house.run.layout))


def report(house: House, worker: str, data: bytes) -> Any:
    return house.report(worker, house.claim(worker), payload=data)


def nearly(vector: Vector) -> Vector:
    """Another file with another hash: all values a little off, one in five gone or of the other sign."""
    random = np.random.default_rng(7)
    noisy = vector * (1 + 0.1 * random.standard_normal(SIZE)).astype(np.float32)
    return noisy * random.choice(np.array([0, -1, 1, 1, 1, 1, 1, 1, 1, 1], np.float32), SIZE)


def test_a_near_copy_of_a_sparse_update_is_refused(begin: Callable[..., House]) -> None:
    """Catches one work that counts twice because a few bytes of it were changed."""
    house = begin()
    first, second = payload(house, update(1)), payload(house, nearly(update(1)))
    assert first != second
    assert report(house, "ann", first).verdict == "accepted"
    receipt = report(house, "bob", second)
    assert (receipt.verdict, receipt.code) == ("rejected", "copy")
    assert "nearly" in receipt.reason


def test_honest_sparse_updates_are_not_copies(begin: Callable[..., House]) -> None:
    """Catches a threshold at which any two updates are alike, and a worker that is compared with itself."""
    house = begin()
    shared = update(9) * np.float32(0.5)  # what all learn alike
    for seed, worker in ((1, "ann"), (2, "bob")):
        assert report(house, worker, payload(house, update(seed) + shared)).verdict == "accepted"
    house.clock.time += 10.0
    assert house.merge() is not None
    assert report(house, "ann", payload(house, nearly(update(1) + shared))).verdict == "accepted"


def test_what_is_remembered_is_no_more_than_what_is_on_disk(begin: Callable[..., House]) -> None:
    """Catches a restart after which copies are let in, and a file that is read for every report."""
    house = begin()
    assert report(house, "ann", payload(house, update(1))).verdict == "accepted"
    house.reopen()
    read: list[str] = []
    right = Lookalikes.of

    def counted(self: Lookalikes, sha256: str, do: Any) -> Any:
        return right(self, sha256, lambda: (read.append(sha256), do())[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lookalikes, "of", counted)
        for seed in (1, 2):
            task = house.claim("bob")
            data = nearly(update(1)) * np.float32(1 + 0.01 * seed)
            assert house.report("bob", task, payload=payload(house, data)).code == "copy"
            house.clock.time += 60.0  # a rest after a refusal
    assert len(read) == 1


@pytest.mark.parametrize(
    "changes", [{"gates": []}, {"codec": "int8-block-v1", "merge_rule": "buffered_nesterov"}]
)
def test_only_where_it_is_defined_and_switched_on(begin: Callable[..., House], changes: Any) -> None:
    """Honest dense updates have their largest values in the same places; catches a gate that refuses them."""
    house = begin(**changes)
    assert report(house, "ann", payload(house, update(1))).verdict == "accepted"
    assert report(house, "bob", payload(house, nearly(update(1)))).verdict == "accepted"


def test_of_two_copies_that_are_judged_at_the_same_time_one_counts(begin: Callable[..., House]) -> None:
    """Catches one work that counts twice because neither was in the ledger when the other was judged."""
    house = begin(codec="int8-block-v1", merge_rule="sync")
    data, theirs = payload(house, update(1)), house.claim("bob")
    verdicts = []

    def meanwhile(point: str) -> None:
        if point == "submit.gated" and not verdicts:
            verdicts.append(None)
            verdicts[0] = house.report("bob", theirs, payload=data)

    house.c = replace(house.c, crash_points=CrashPoints(meanwhile))
    mine = report(house, "ann", data)
    assert (verdicts[0].verdict, mine.verdict, mine.code) == ("accepted", "rejected", "copy")
