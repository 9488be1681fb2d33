"""What publishing in bf16 changes in training: ternary codes, and where a run ends (training.md, 8)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bithaul.corpus.build import build_corpus
from bithaul.corpus.example import Example
from bithaul.exchange.bf16 import from_bf16, to_bf16
from bithaul.model.layout import PROJECTIONS, Layout, layout_of
from bithaul.model.quantize import quantize_weight
from bithaul.simulation.real import Real
from bithaul.simulation.scenario import SCENARIOS, Rehearsal

CHANGED_CODES = 0.002
WORDS = ["stop", "fuel", "dallas", "route", "eta", "load", "break", "north"]
TINY = """
hidden_size = 64
intermediate_size = 128
num_layers = 2
num_heads = 4
context_length = 64
"""
Vector = np.ndarray[Any, np.dtype[np.float32]]


def changed_codes(theta: Vector, published: Vector, layout: Layout) -> float:
    """Share of the ternary codes that differ between two vectors."""
    changed = total = 0
    for (spec, one), (_, other) in zip(layout.views(theta), layout.views(published), strict=True):
        if any(spec.name.endswith(f"{part}.weight") for part in PROJECTIONS):
            codes = [quantize_weight(torch.from_numpy(np.array(w)))[0] for w in (one, other)]
            changed += int((codes[0] != codes[1]).sum())
            total += one.size
    assert total > 0
    return changed / total


def test_a_normal_matrix_keeps_its_codes() -> None:
    """0.023 % change; dropping bits instead of rounding would change 0.049 %, and must be seen."""
    matrix = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    codes = quantize_weight(torch.from_numpy(matrix))[0]
    rounded = quantize_weight(torch.from_numpy(from_bf16(to_bf16(matrix))))[0]
    assert 0 < float((codes != rounded).float().mean()) < 0.0004 < CHANGED_CODES


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    folder = tmp_path_factory.mktemp("published")
    examples = [Example(f"{a} {b}", "navigate", (("city", a),)) for a in WORDS for b in WORDS]
    build_corpus(folder / "corpus", examples[:56], examples[56:], max_tokens=65, seed=1, min_frequency=1)
    (folder / "tiny.toml").write_text(TINY)
    return Real(folder / "corpus", preset=str(folder / "tiny.toml"), workers=2)


def trained(real: Real, folder: Path, *, seed: int, weights: str) -> tuple[float, float]:
    """Held-out loss of the last version as published, and the share of codes that publication changed."""
    torch.set_num_threads(1)
    scenario = replace(SCENARIOS["calm"], workers=2, seed=seed, weights=weights)
    rehearsal = Rehearsal(real.planned(scenario, tokens=12_000, steps=5), folder, subject=real)
    outcome = rehearsal.run()
    assert outcome.kept, outcome.broken
    assert outcome.versions >= 6
    assert outcome.loss_last < 0.8 * outcome.loss_first, "it learns"
    assert outcome.heldout_loss is not None
    theta, published = rehearsal.checker.replay.theta, rehearsal.record.theta
    assert np.array_equal(theta, published) == (weights == "fp32")
    return outcome.heldout_loss, changed_codes(theta, published, layout_of(real.model))


def test_a_run_ends_where_it_ends_in_fp32(real: Real, tmp_path: Path) -> None:
    """Two seeds each. Catches a published vector that is worth less than theta, and a theta that loses steps;
    the seeds alone differ by 4 %."""
    found = {
        (weights, seed): trained(real, tmp_path / f"{weights}{seed}", seed=seed, weights=weights)
        for weights in ("fp32", "bf16")
        for seed in (0, 1)
    }
    fp32, bf16 = (
        [result for (choice, _), result in found.items() if choice == weights] for weights in ("fp32", "bf16")
    )
    assert sum(loss for loss, _ in bf16) < 1.03 * sum(loss for loss, _ in fp32), found
    assert all(0 < codes <= CHANGED_CODES for _, codes in bf16), found
