"""The two quantisers against their definition, on the inputs that break implementations."""

from __future__ import annotations

import pytest
import torch

from bithaul.model.quantize import quantize_activation, quantize_weight


def test_weight_codes_and_scale_follow_the_definition() -> None:
    """Catches a median scale, rounding half up, or an epsilon on the scale."""
    weight = torch.tensor([[0.5, -1.5, 0.1], [3.0, -0.2, 0.7]])
    codes, scale = quantize_weight(weight)
    assert scale.item() == pytest.approx(1.0)
    assert codes.tolist() == [[0, -1, 0], [1, 0, 1]]  # 0.5 is a tie and goes to the even number
    assert codes.dtype == torch.int8
    assert scale.shape == ()


def test_scale_does_not_depend_on_the_number_of_threads() -> None:
    weight = torch.randn(1024, 257, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = quantize_weight(weight)[1]
        torch.set_num_threads(2)
        two = quantize_weight(weight)[1]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


def test_normal_weights_have_31_percent_zeros() -> None:
    """0.310 is the share of a normal distribution below half its mean magnitude."""
    codes, _ = quantize_weight(torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1)))
    assert (codes == 0).float().mean().item() == pytest.approx(0.310, abs=0.003)


def test_activation_scale_is_per_row_and_uses_the_full_range() -> None:
    x = torch.tensor([[1.0, -0.5, 0.25], [-200.0, 100.0, 3.0]])
    codes, scale = quantize_activation(x)
    assert codes.tolist() == [[127, -64, 32], [-127, 64, 2]]
    assert scale.flatten().tolist() == pytest.approx([127.0, 0.635])


@pytest.mark.parametrize("rows", [torch.zeros(3, 8), torch.full((3, 8), 1e-9), torch.full((2, 8), 3e38)])
def test_extreme_rows_stay_finite_and_in_range(rows: torch.Tensor) -> None:
    """Catches a division by zero for silent rows and an overflow for huge ones."""
    codes, scale = quantize_activation(rows)
    assert torch.isfinite(scale).all()
    assert codes.abs().max() <= 127


def test_the_clip_of_activations_is_never_active() -> None:
    """The fused path leaves the clip out: |x * s| rounds to at most 127 for every row."""
    x = (
        torch.randn(20_000, 7, generator=torch.Generator().manual_seed(2))
        * torch.logspace(-8, 8, 20_000)[:, None]
    )
    scale = 127.0 / x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-5)
    assert (x * scale).round().abs().max() <= 127


def test_zero_weights_give_zero_codes() -> None:
    codes, scale = quantize_weight(torch.zeros(4, 4))
    assert scale.item() == pytest.approx(1e-5)
    assert not codes.any()
