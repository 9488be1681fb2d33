"""What needs a real GPU: the largest preset trains there and says how fast, and the command line uses it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bithaul.cli.main import run
from bithaul.model.config import load_config
from bithaul.model.device import DevicePath, choose_path, hardware
from bithaul.model.init import initial_vector
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import StepReport, Trainer, projection_shapes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]
VOCABULARY = 5174


def learnable(count: int, length: int) -> list[np.ndarray]:
    """Arithmetic sequences over a small part of the vocabulary, which a few steps can find out."""
    random = np.random.default_rng(0)
    starts, steps = random.integers(0, 64, count), random.integers(1, 8, count)
    return [((a + np.arange(length) * d) % 64).astype(np.int32) for a, d in zip(starts, steps, strict=True)]


@pytest.mark.parametrize("name", ["cuda", "cuda-int8", "cuda-fp32"])
def test_large_trains_and_says_how_fast(name: str, record_property: Callable[[str, object], None]) -> None:
    """Catches a loss that stands still or is not finite, dropped steps, and weights that stay on the CPU."""
    config, recipe = (
        load_config("large", vocab_size=VOCABULARY),
        TrainingRecipe.for_preset("large", "intents"),
    )
    trainer = Trainer(config, recipe, label_token=None, threads=1, path=name)
    trainer.load(initial_vector(config, seed=0))
    examples = learnable(recipe.batch_examples * 24, 257)
    reports: list[StepReport] = []
    result = trainer.train(
        examples, progress_start=0.1, progress_end=0.1, seed=0, on_step=lambda r: reports.append(r) or True
    )
    assert (result.dropped_steps, result.steps) == (0, 24)
    assert math.isfinite(result.loss_last)
    assert result.loss_last < result.loss_first - 0.5
    assert {p.device.type for p in trainer.model.parameters()} == {"cuda"}
    speed = (reports[-1].tokens - reports[3].tokens) / (reports[-1].seconds - reports[3].seconds)
    memory = torch.cuda.max_memory_allocated() / 1e9
    record_property("tokens_per_second", round(speed))
    print(f"\nlarge on {trainer.path.reason}: {speed:,.0f} tokens/s, {memory:.1f} GB at most")


def test_a_gpu_is_chosen_without_being_asked_for() -> None:
    found = choose_path(projection_shapes(load_config("small", vocab_size=VOCABULARY), 1024))
    assert isinstance(found, DevicePath)
    assert found.device.type == "cuda"
    assert torch.cuda.get_device_name() in found.reason
    name, memory = hardware(found) or ("", 0)
    assert name
    assert memory > 1e9


def test_bench_step_runs_on_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["bench", "step", "--path", "cuda", "--steps", "5", "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    print(found)
    assert found["path"] == "cuda"
    assert found["tokens_per_second"] > 0
    assert 0 < found["roofline_fraction"] < 1.1
    assert 0 < found["peak_memory_mb"] < torch.cuda.get_device_properties(0).total_memory / 1e6
