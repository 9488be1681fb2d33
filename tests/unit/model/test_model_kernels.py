"""The fused passes against their definitions in torch, one by one."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bithaul.model import kernels
from bithaul.model.autograd import array_of
from bithaul.model.bitlinear import CodeCache
from bithaul.model.fused import rms_norm
from bithaul.model.products import EXACT_FP32
from bithaul.model.quantize import quantize_activation, quantize_weight
from bithaul.model.scratch import scratch
from bithaul.model.segments import Group, Segments

EPS = np.float32(1e-5)


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("width", [8, 31, 256, 1024])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_norm_and_codes_equal_the_definition(width: int, scale: float) -> None:
    """Catches a wrong mean, gain or rounding. Another order of adding may move a code by one, rarely."""
    x, gain = noise(64, width, scale=scale), 1 + 0.3 * noise(width, seed=1)
    codes, rstd, inverse = np.empty(x.shape, np.int8), np.empty(64, np.float32), np.empty(64, np.float32)
    kernels.norm_quantize(x.numpy(), gain.numpy(), EPS, codes, rstd, inverse)
    expected, s = quantize_activation(rms_norm(x, gain, float(EPS)))
    difference = np.abs(codes.astype(int) - expected.numpy())
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3
    np.testing.assert_allclose(1 / inverse, s[:, 0].numpy(), rtol=1e-6)


def test_rows_of_zeros_have_codes_of_zero() -> None:
    codes, rstd, inverse = np.ones((2, 16), np.int8), np.empty(2, np.float32), np.empty(2, np.float32)
    kernels.norm_quantize(np.zeros((2, 16), np.float32), np.ones(16, np.float32), EPS, codes, rstd, inverse)
    assert not codes.any()
    assert np.isfinite(rstd).all()
    assert np.isfinite(inverse).all()


@pytest.mark.parametrize("rows", [1, 3, 700])
def test_cached_codes_equal_the_quantiser_bit_for_bit(rows: int) -> None:
    weights = [torch.nn.Parameter(noise(rows, 96, seed=s, scale=0.02 * (s + 1))) for s in range(3)]
    cached = CodeCache(*weights).codes(EXACT_FP32)
    for weight, codes, scale in zip(weights, cached.codes.split(rows), cached.scales, strict=True):
        expected, g = quantize_weight(weight)
        assert torch.equal(codes, expected)
        assert float(scale) == float(g)


def test_bf16_is_rounded_as_torch_rounds_it() -> None:
    """Also ties, the largest value that is not infinity, and infinities."""
    values = torch.cat([noise(4096), torch.tensor([1.00390625, 1.01171875, 3.3e38, -3.4e38, 0.0, torch.inf])])
    rows = values.reshape(1, -1)
    out = torch.empty(rows.shape, dtype=torch.bfloat16)
    kernels.scale_gradient(rows.numpy(), np.ones(1, np.float32), np.float32(1.0), array_of(out))
    assert torch.equal(out, rows.bfloat16())
    back = torch.empty(rows.shape)
    kernels.widen_scaled(array_of(out), np.float32(1.0), back.numpy())
    assert torch.equal(back, rows.bfloat16().float())


@pytest.mark.parametrize("width", [1, 5, 16, 46])
def test_causal_softmax_and_its_gradient(width: int) -> None:
    """Scores far apart too: no weight may become a denormal number or leak from the future."""
    scores = noise(6, width, width, scale=30.0).requires_grad_()
    hidden = torch.ones(width, width).triu(1).bool()
    expected = (scores * 0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    weights = scores.detach().clone()
    kernels.causal_softmax(weights.numpy(), np.float32(0.5))
    torch.testing.assert_close(weights, expected.detach(), rtol=1e-5, atol=1e-7)
    assert not weights[:, hidden].any()
    direction = noise(6, width, width, seed=2)
    (expected * direction).sum().backward()
    slopes = direction.clone()
    kernels.softmax_backward(weights.numpy(), slopes.numpy(), np.float32(0.5))
    assert scores.grad is not None
    torch.testing.assert_close(slopes, scores.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_cross_entropy_and_its_gradient(smoothing: float, scale: float) -> None:
    """Confident logits as well: the exponentials of all others nearly vanish. Rows end in foreign values."""
    logits = noise(9, 77, scale=scale).requires_grad_()
    targets = torch.randint(0, 77, (9,), generator=torch.Generator().manual_seed(1))
    share = torch.linspace(0.0, 1.0, 9)
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    (expected * share).sum().backward()
    losses, uniform, gradient = torch.empty(9), torch.zeros(9), torch.full((9, 80), 7.0)
    kernels.cross_entropy(
        F.pad(logits.detach(), (0, 3), value=100.0).numpy(),
        77,
        targets.numpy(),
        share.numpy(),
        np.float32(smoothing),
        losses.numpy(),
        uniform.numpy(),
        gradient.numpy(),
    )
    found = (1 - smoothing) * losses + smoothing * uniform
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    assert logits.grad is not None
    torch.testing.assert_close(gradient[:, :77], logits.grad, rtol=1e-4, atol=1e-6)
    assert gradient[:, 77:].eq(7.0).all()


def test_not_finite_logits_give_a_loss_that_is_not_finite() -> None:
    """The step is dropped by its loss, so nothing may turn NaN into a number on the way."""
    for bad in (np.nan, np.inf):
        logits = np.zeros((1, 40), np.float32)
        logits[0, 7] = bad
        losses, gradient = np.zeros(1, np.float32), np.zeros((1, 40), np.float32)
        kernels.cross_entropy(
            logits, 40, np.array([3]), np.ones(1, np.float32), np.float32(0), losses, losses.copy(), gradient
        )
        assert not np.isfinite(losses[0])


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([5, 5, 5], (Group(0, 3, 5),)),
        ([7], (Group(0, 1, 7),)),
        ([2, 2, 2, 9], (Group(0, 3, 2), Group(3, 1, 9))),
        ([9, 2, 2], (Group(0, 1, 9), Group(1, 2, 2))),
        ([9, 2, 9], (Group(0, 3, 9),)),
    ],
)
def test_segments_are_grouped_where_it_saves_most(lengths: list[int], groups: tuple[Group, ...]) -> None:
    found = Segments.of_lengths(torch.tensor(lengths)).groups
    area = sum(g.count * g.longest**2 for g in found)
    assert area == sum(g.count * g.longest**2 for g in groups)
    assert sum(g.count for g in found) == len(lengths)
    assert all(max(lengths[g.first : g.first + g.count]) == g.longest for g in found)


def test_scratch_memory_is_reused_and_not_shared_between_threads() -> None:
    first = scratch("test", (4, 8))
    assert scratch("test", (2, 8)).data_ptr() == first.data_ptr()
    assert scratch("test", (4, 8), torch.bfloat16).data_ptr() != first.data_ptr()
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(scratch("test", (4, 8)).data_ptr()))
    thread.start()
    thread.join()
    assert other[0] != first.data_ptr()


def test_kernels_compile_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A container with a read-only root has no folder for machine code: it must compile and work anyway."""
    program = (
        "import numpy as np, numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"
        "from bithaul.model import kernels\n"
        "out = np.empty((1, 2), np.float32)\n"
        "kernels.widen_scaled(np.ones((1, 2), np.float32), np.float32(3), out)\n"
        "print(out.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[[3.0, 3.0]]", done.stderr
