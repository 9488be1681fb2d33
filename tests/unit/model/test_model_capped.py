"""Machines that are not at hand: the same checks in processes whose instruction set is capped.

oneDNN, ATen and numba each read their own variable. What a cap takes away must be refused with a reason, what
is left must be exact, and a step on the path that is then chosen must learn as the definition does.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from bithaul.model import tiles

CHECK = """
import json, sys
import numpy as np
import torch
from bithaul.model.choice import choose_path
from bithaul.model.config import ModelConfig
from bithaul.model.init import initial_vector
from bithaul.model.products import FORWARD, StepPath, backward_refusal, integer_product, refusal
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer

generator = torch.Generator().manual_seed(0)
refused = {name: refusal(name) for name in FORWARD}
for name in (name for name, reason in refused.items() if reason is None):
    for m, k, n in ((1, 31, 16), (17, 256, 48), (17, 3072, 48)):
        codes = torch.randint(-1, 2, (n, k), generator=generator, dtype=torch.int8)
        for x in (torch.full((m, k), -128), torch.full((m, k), 127), torch.randint(-128, 128, (m, k))):
            for t in (codes, torch.ones_like(codes)):
                found = StepPath(name, "fp32", "").product(x.to(torch.int8), t)
                assert torch.equal(found.long(), integer_product(x, t)), (name, m, k, n)
config = ModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, context_length=16
)
losses = {}
items = [((i + 3 * np.arange(10)) % 61).astype(np.int32) for i in range(160)]
for side, plain in (("fast", False), ("plain", True)):
    subject = Trainer(config, TrainingRecipe(batch_examples=8), label_token=None, threads=1, plain=plain)
    subject.load(initial_vector(config, seed=1))
    subject.train(items, progress_start=0.1, progress_end=0.1, seed=0)
    losses[side] = subject.evaluate(items[:32]).loss
backward = {name: backward_refusal(name) for name in ("bf16", "int16")}
print(json.dumps({"refused": refused, "backward": backward, "path": subject.path.name, "losses": losses}))
"""

CAPS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "no VNNI": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "nothing": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "+sse2",
    },
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables name x86 instruction sets")
@pytest.mark.parametrize("cap", CAPS)
def test_paths_of_lesser_machines(cap: str) -> None:
    """Catches a kernel that is exact only with the newest instructions, and a path that is not there."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK], env=os.environ | CAPS[cap], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["refused"]["fp32"] is None
    assert "inexact" not in found["refused"].values()
    if cap == "nothing":
        assert "no AVX2" in found["refused"]["tiles"]
        assert "no AVX2" in found["backward"]["int16"]
    forward, _, backward = found["path"].partition("+")
    assert found["refused"][forward] is None
    assert found["backward"].get(backward) is None
    if cap != "nothing" and tiles.missing() is None:  # the ways of a machine with AVX2 and nothing newer
        assert found["refused"]["tiles"] is None
        assert found["backward"]["int16"] is None
    assert found["losses"]["plain"] < 3.9  # ln 61 is 4.1
    assert found["losses"]["fast"] == pytest.approx(found["losses"]["plain"], rel=0.05)
