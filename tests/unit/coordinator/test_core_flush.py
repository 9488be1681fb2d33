"""Merging in slices: memory does not grow with the model, and slicing changes no bit."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from bithaul.coordinator.commands import flush as module
from bithaul.coordinator.commands.flush import flush
from bithaul.coordinator.context import CrashPoints
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.weights import weights_pieces
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of
from bithaul.rounds.facts import Contribution, Past
from bithaul.rounds.rules import rule_named

House = Any
WIDE = ModelConfig(
    vocab_size=5000, hidden_size=256, intermediate_size=1024, num_layers=2, num_heads=8, context_length=16
)


def merged(c: Any, rule: Any, updates: list[Any], **given: Any) -> Any:
    """Version 2 from these updates of a hundred tokens each."""
    taken = [Contribution(i, f"w{i}", 100, 0, 0.0) for i in range(len(updates))]
    return flush(
        c,
        rule=rule,
        version=2,
        updates=updates,
        plan=lambda products: rule.plan(taken, past=Past(), products=products),
        **given,
    )


def test_a_merge_holds_slices_never_vectors(make_house: Callable[..., House]) -> None:
    """Catches a merger that needs gigabytes for a large model. Three million values, five updates."""
    house = make_house()
    layout = layout_of(WIDE)
    random = np.random.default_rng(0)
    codec = codec_named("int8-block-v1")
    house.create()
    house.register("ann")
    task = house.claim("ann")
    theta = random.standard_normal(layout.size, dtype=np.float32)
    base = house.c.blobs.put(weights_pieces(1, theta), name="base")
    momentum = house.c.blobs.put(weights_pieces(1, theta * 0.1), name="momentum")
    updates = []
    for i in range(5):
        scale = np.float32(-10.0 if i == 3 else 1.0)
        payload = bytes(codec.encode(random.standard_normal(layout.size, dtype=np.float32) * scale, layout))
        updates.append(house.c.blobs.put([house.frame(task, payload=payload)], name=f"update{i}"))
        del payload

    def merge(chunk: int, aggregator: str = "mean") -> Any:
        rule = rule_named("sync", {"mu": 0.9, "eta": 0.7, "aggregator": aggregator})
        given = {"codec": codec, "layout": layout, "base": base, "momentum": momentum}
        return merged(house.c, rule, updates, chunk_values=chunk, **given)

    whole = merge(layout.size)
    tracemalloc.start()
    sliced = merge(65_536)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (sliced.weights.sha256, sliced.momentum.sha256) == (whole.weights.sha256, whole.momentum.sha256)
    assert peak < 4 * layout.size * 0.7, f"{peak} bytes were held, one vector has {4 * layout.size}"
    robust, again = merge(layout.size, "centered_clip"), merge(65_536, "centered_clip")
    assert robust.weights.sha256 == again.weights.sha256, "products do not depend on the merger's memory"
    assert robust.weights.sha256 != whole.weights.sha256


@pytest.mark.parametrize("codec_name", ["int8-block-v1", "topk-2bit-v1", "fp32-v1"])
def test_a_merge_of_many_updates_holds_few_files_open(
    make_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, codec_name: str
) -> None:
    """Catches a round of a thousand reports that can never be merged, for want of open files."""
    house = make_house()
    house.create(codec=codec_name)
    house.register("ann")
    task = house.claim("ann")
    layout, codec = house.run.layout, codec_named(codec_name)
    random = np.random.default_rng(0)
    base = house.c.blobs.put(weights_pieces(1, np.zeros(layout.size, np.float32)), name="base")
    updates = []
    for i in range(12):
        vector = random.standard_normal(layout.size, dtype=np.float32)
        frame = house.frame(task, payload=bytes(codec.encode(vector, layout)))
        updates.append(house.c.blobs.put([frame], name=f"update{i}"))
    rule = rule_named("sync", {"mu": 0.9, "eta": 0.7})
    opened: list[int] = []

    def look(point: str) -> None:
        if point == "flush.blob_half":
            paths = {str(update.path) for update in updates}
            opened.append(sum(file.path in paths for file in psutil.Process().open_files()))

    def merge() -> str:
        c = dataclasses.replace(house.c, crash_points=CrashPoints(look))
        given = {"codec": codec, "layout": layout, "base": base, "momentum": None}
        return str(merged(c, rule, updates, chunk_values=64, **given).theta.sha256)

    at_once = merge()
    monkeypatch.setattr(module, "MOST_OPEN", len(updates) - 1)
    assert merge() == at_once
    assert opened == [len(updates), 0]
