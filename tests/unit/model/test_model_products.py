"""Every compute path gives the exact integer sums, and the choice among them explains itself."""

from __future__ import annotations

import time

import pytest
import torch

from bithaul.errors import InvalidConfig, UnknownName
from bithaul.model import choice, products, tiles
from bithaul.model.bitlinear import BitLinear, fake_quantized_linear, integer_linear
from bithaul.model.choice import choose_path
from bithaul.model.products import (
    BACKWARD,
    FORWARD,
    Kernel,
    StepPath,
    integer_product,
    matmul_precision,
)

SHAPES = [(m, k, n) for m in (1, 17) for k in (1, 31, 256, 3072) for n in (1, 48)]


def usable(forward: str) -> StepPath:
    reason = products.refusal(forward)
    if reason is not None:
        pytest.skip(f"{forward} is {reason} here")
    return StepPath(forward, "fp32", "test")


def inputs(kind: str, m: int, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(m * 10_000 + k)
    x = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
    match kind:
        case "all 127":
            return torch.full_like(x, 127)
        case "all -128":
            return torch.full_like(x, -128)
        case "zero rows":
            x[::2] = 0
        case "outlier":
            x = torch.zeros_like(x)
            x[:, -1] = -128
    return x


@pytest.mark.parametrize("forward", FORWARD)
@pytest.mark.parametrize("kind", ["random", "all 127", "all -128", "zero rows", "outlier"])
def test_sums_equal_the_int64_reference(forward: str, kind: str) -> None:
    """Catches 16-bit saturation, bf16 outputs, and a wrong zero point, at the sizes in use."""
    path = usable(forward)
    for m, k, n in SHAPES:
        x = inputs(kind, m, k)
        for codes in (
            torch.randint(-1, 2, (n, k), generator=torch.Generator().manual_seed(n), dtype=torch.int8),
            torch.ones(n, k, dtype=torch.int8),
            -torch.ones(n, k, dtype=torch.int8),
        ):
            assert torch.equal(path.product(x, codes).to(torch.int64), integer_product(x, codes)), (m, k, n)


@pytest.mark.parametrize("forward", FORWARD)
def test_one_row_with_a_stride_of_zero(forward: str) -> None:
    """A single decoded token may come with one; `_int_mm` then returns unset memory (pytorch #195066)."""
    path = usable(forward)
    x, codes = torch.full((1, 64), 3, dtype=torch.int8), torch.ones(32, 64, dtype=torch.int8)
    assert (path.product(x.as_strided((1, 64), (0, 1)), codes) == 192).all()


@pytest.mark.parametrize("forward", FORWARD)
def test_layer_is_bit_identical_on_every_path_and_near_fake_quantisation(forward: str) -> None:
    path = usable(forward)
    torch.manual_seed(0)
    layer = BitLinear(256, 96)
    torch.nn.init.normal_(layer.weight, std=0.02)
    x = torch.randn(5, 17, 256)
    exact = integer_linear(x, layer.weight)
    assert torch.equal(layer.infer(x, path=path), exact)
    definition = fake_quantized_linear(x, layer.weight).detach()
    assert (exact - definition).norm() <= 1e-6 * definition.norm()


def test_straight_through_gradient_uses_quantised_operands() -> None:
    """dx = dy W_q and dW = dy^t x_q; the plain gradients of a linear layer would be dy W and dy^t x."""
    torch.manual_seed(0)
    layer, x, dy = BitLinear(16, 8), torch.randn(4, 16, requires_grad=True), torch.randn(4, 8)
    torch.nn.init.normal_(layer.weight, std=0.02)
    layer(x).backward(dy)
    identity = torch.eye(16)
    x_q = integer_reference_of_activations(x)
    w_q = integer_linear(identity, layer.weight).t()
    assert layer.weight.grad is not None
    assert x.grad is not None
    torch.testing.assert_close(x.grad, dy @ w_q, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(layer.weight.grad, dy.t() @ x_q, rtol=1e-5, atol=1e-6)


def integer_reference_of_activations(x: torch.Tensor) -> torch.Tensor:
    scale = 127.0 / x.detach().abs().amax(dim=-1, keepdim=True)
    return (x.detach() * scale).round() / scale


def test_choice_names_its_reason_and_a_forced_path_is_taken() -> None:
    chosen = choose_path([(32, 64, 64)])
    assert chosen.forward in FORWARD
    assert chosen.backward in BACKWARD
    assert "exact" in chosen.reason
    assert "x fp32" in chosen.reason
    assert choose_path([(32, 64, 64)], forced="fp32+fp32").name == "fp32+fp32"


def test_unknown_path_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"int_mm\+bf16"):
        choose_path([], forced="magic")


def test_an_inexact_or_missing_path_is_refused_and_cannot_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(x: torch.Tensor, codes: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return integer_product(x, codes) + 1

    def missing(x: torch.Tensor, codes: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError("no kernel")

    monkeypatch.setitem(FORWARD, "int_mm", Kernel(lambda codes: codes, off_by_one, torch.int64))
    monkeypatch.setitem(FORWARD, "qlinear", Kernel(lambda codes: codes, missing, torch.int32))
    assert products.refusal("int_mm") == "inexact"
    assert "no kernel" in (products.refusal("qlinear") or "")
    with pytest.raises(InvalidConfig, match="inexact"):
        choose_path([], forced="int_mm+bf16")
    assert choose_path([(32, 64, 64)]).forward not in ("int_mm", "qlinear")


def test_precision_switch_is_restored_after_an_error() -> None:
    """It is process-wide: left on, references and the fp32 twin would silently lose precision."""
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision

    def fails_inside() -> None:
        with matmul_precision("bf16"):
            assert backend.fp32_precision == "bf16"
            raise RuntimeError("product")

    with pytest.raises(RuntimeError, match="product"):
        fails_inside()
    assert backend.fp32_precision == before


def test_one_slow_moment_refuses_no_path_and_fp32_is_never_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a probe that judges by a single timing, and a busy machine left without any path."""
    calls = iter(range(1_000))

    def interrupted(x: torch.Tensor, codes: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        if next(calls) == 1:
            time.sleep(0.1)
        return integer_product(x, codes)

    def slow(x: torch.Tensor, codes: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        time.sleep(0.06)
        return integer_product(x, codes)

    for name, product in (("int_mm", interrupted), ("qlinear", slow), ("fp32", slow)):
        monkeypatch.setitem(FORWARD, name, Kernel(lambda codes: codes, product, torch.int64))
    assert products.refusal("int_mm") is None
    assert "slow reference loop" in (products.refusal("qlinear") or "")
    assert products.refusal("fp32") is None
    assert choose_path([], forced="qlinear+fp32").name == "qlinear+fp32", "slow, but exact: it may be forced"
    assert "qlinear is a slow reference loop" in choose_path([(32, 64, 64)]).reason


def test_a_tie_goes_to_the_first_in_the_table() -> None:
    """Noise of a few percent must not decide by which numbers two starts of a machine train."""
    assert choice._best({"fp32": 1.03, "int16": 1.0}) == "fp32"
    assert choice._best({"fp32": 1.2, "int16": 1.0}) == "int16"


def test_sixteen_bit_gradients_that_are_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if tiles.missing() is not None:
        pytest.skip("there are no register blocks on this machine")
    from bithaul.model import integer

    assert products.backward_unusable.__wrapped__("int16") is None
    right = integer.add_words

    def off_by_one(left, panels, scales, fresh, out):  # type: ignore[no-untyped-def]
        right(left, panels, scales, fresh, out)
        out[-1, -1] += 1

    monkeypatch.setattr(integer, "add_words", off_by_one)
    assert products.backward_unusable.__wrapped__("int16") == "inexact"
