"""The benchmark of a step: its numbers hang together, and the products it counts are those of a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psutil
import pytest

from bithaul.errors import InvalidInput
from bithaul.model.config import ModelConfig
from bithaul.training import bench, ceilings
from bithaul.training.bench import bench_gemm, bench_step, examples_of
from bithaul.training.ceilings import Kind, Product, Run, product_seconds, step_products
from bithaul.training.recipe import TrainingRecipe

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, context_length=32
)


def test_a_step_is_compared_with_its_reference_and_its_products() -> None:
    batch = examples_of(CONFIG, count=4, shortest=8, longest=32)
    seen: list[int] = []
    found = bench_step(CONFIG, TrainingRecipe(), threads=1, examples=batch, steps=3, on_step=seen.append)
    assert seen == [1, 2, 3]
    assert found.tokens_per_step == sum(len(e) - 1 for e in batch)
    assert found.tokens_per_second == pytest.approx(found.tokens_per_step / found.step_seconds)
    assert found.speedup == pytest.approx(found.tokens_per_second / found.reference_tokens_per_second)
    assert found.roofline_fraction == pytest.approx(found.products_seconds / found.step_seconds)
    assert 0 < found.roofline_fraction < 1
    assert found.peak_memory_mb > 50
    assert found.reason


def test_peak_memory_remembers_what_was_given_back() -> None:
    """Resident memory after the steps would miss what a step needs in between."""
    before = bench._peak_memory()
    block = np.ones(before - psutil.Process().memory_info().rss + 64_000_000, dtype=np.uint8)
    del block
    assert bench._peak_memory() >= before + 50_000_000


def test_examples_have_the_lengths_asked_for() -> None:
    lengths = [len(e) - 1 for e in examples_of(CONFIG, count=5, shortest=8, longest=32)]
    assert (min(lengths), max(lengths)) == (8, 32)
    assert [len(e) - 1 for e in examples_of(CONFIG, count=1, shortest=7, longest=9)] == [9]
    with pytest.raises(InvalidInput, match="context of 32"):
        examples_of(CONFIG, count=1, shortest=1, longest=33)


def test_the_products_of_a_step_are_six_for_each_weight_and_token() -> None:
    """Two operations a multiply-add, three products a matrix: forgetting one would flatter the roofline."""
    batch = [np.zeros(33, np.int32)] * 8
    tokens = 8 * 32
    products = step_products(CONFIG, batch)
    operations = sum(product.operations * count for product, count in products if product.kind != "attention")
    h, f = 64, 128
    weights = 2 * (4 * h * h + 3 * h * f) + 97 * h
    assert operations == 6 * tokens * weights
    [(product, count)] = [p for p in products if p[0].kind == "attention"]
    assert product == Product("attention", 4 * 8, 32, 16)  # heads and examples, length, head dimension
    assert count == 2 * 6  # two products forward and four backward, in each layer


@pytest.mark.parametrize("kind", ["forward", "input_gradient", "weight_gradient", "head", "attention"])
def test_threads_share_the_rows_of_a_product(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a ceiling for two threads that times the whole product on each, or half of it in all."""
    seen: list[int] = []
    ways = ceilings._ways

    def spied(product: Product, fp32: bool) -> list[Callable[[], Run]]:
        return [lambda make=make: (seen.append(product.rows), make())[1] for make in ways(product, fp32)][:1]

    monkeypatch.setattr(ceilings, "_ways", spied)
    assert product_seconds(Product(kind, 64, 32, 16), threads=2) > 0
    assert seen == [32, 32]


def test_ceilings_name_every_product() -> None:
    path, found = bench_gemm(CONFIG, threads=1, rows=64)
    assert path.reason
    assert {(g.name, g.shape) for g in found} == {
        (name, shape)
        for name in ("int8", "dX", "dW", "fp32")
        for shape in ((64, 64, 192), (64, 64, 64), (64, 64, 256), (64, 128, 64))
    }
    assert all(g.gops > 0 for g in found)
