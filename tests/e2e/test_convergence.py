"""Merged workers learn as one process does: the benchmark's comparison, small enough to run often."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bithaul.model.config import ModelConfig
from bithaul.training.recipe import TrainingRecipe

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "convergence.py"


@pytest.fixture(scope="module")
def convergence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convergence", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["convergence"] = module
    spec.loader.exec_module(module)
    return module


def compare(convergence: ModuleType, *, rule: dict[str, float], examples: int) -> dict[str, float]:
    """The one row of two workers with ten steps a task, on a model that trains in seconds."""
    data = convergence.make_data(examples=examples, heldout=256, seed=0, max_tokens=97)
    config = ModelConfig(
        vocab_size=data.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        context_length=96,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = convergence.compare(
            data,
            config=config,
            alone=TrainingRecipe.for_preset("small", "intents"),
            theirs=TrainingRecipe.for_preset("small", "intents", workers=2),
            steps_per_task=[10],
            epochs=2.0,
            workers=2,
            codec="int8-block-v1",
            rule_options=rule,
            seed=0,
            processes=1,
        )
    finally:
        torch.set_num_threads(threads)
    single, row = result["rows"]
    assert row["tokens"] == single["tokens"], "both sides must train the same tokens"
    return dict(row) | {"single_loss": single["train_loss"]}


def test_two_tiny_workers_stay_near_one_process(convergence: ModuleType) -> None:
    """Catches a merge that loses progress: without it, or with half of it, the ratio is far above.

    The model is tiny and the run short, where the loss still falls fast; there the workers, with their higher
    rates, even lead (docs/lab/0003).
    """
    row = compare(convergence, rule={}, examples=5000)
    assert row["single_loss"] < 3.0, "the single process learnt nothing to compare with"
    assert row["heldout_ratio"] < 1.0
    half = compare(convergence, rule={"eta": 0.5}, examples=5000)
    assert half["heldout_ratio"] > row["heldout_ratio"] + 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_workers_end_within_three_percent_of_one_process() -> None:
    """`small`, two passes over a full Truck Mate corpus, as the benchmark prints it."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARK)],
        capture_output=True,
        text=True,
        timeout=3500,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["rows"][0]["train_loss"] < 3.0
    assert result["best_heldout_ratio"] < 1.03
    assert result["best_train_ratio"] < 1.03
