"""The path of a device, held to the definition: on the CPU everywhere, on CUDA where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bithaul.errors import InvalidConfig, UnknownName
from bithaul.model import device as module
from bithaul.model.bitlinear import fake_quantized_linear, integer_linear
from bithaul.model.cache import KVCache
from bithaul.model.config import ModelConfig
from bithaul.model.device import (
    DEVICE_FORWARD,
    DevicePath,
    choose_path,
    device_refusal,
    fastest,
    full_precision,
)
from bithaul.model.devicelinear import DeviceCodeCache, device_linear
from bithaul.model.init import initial_vector
from bithaul.model.products import EXACT_FP32, integer_product
from bithaul.model.segments import Segments
from bithaul.model.transformer import BitNetForCausalLM
from bithaul.model.vector import flatten, load_vector

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, context_length=24
)
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
LENGTHS = torch.tensor([3, 7, 24, 1])


def path_of(device: str, forward: str) -> DevicePath:
    path = DevicePath.of(torch.device(device), forward)
    if (reason := device_refusal(path)) is not None:
        pytest.skip(f"{path.name} is {reason} here")
    return path


def weights_of(device: str, *shapes: tuple[int, int]) -> tuple[torch.nn.Parameter, ...]:
    generator = torch.Generator().manual_seed(1)
    values = (torch.randn(shape, generator=generator) * 0.02 for shape in shapes)
    return tuple(torch.nn.Parameter(value.to(device)) for value in values)


def models(path: DevicePath) -> tuple[BitNetForCausalLM, BitNetForCausalLM]:
    """The model on the path and the reference on the CPU, with equal weights."""
    pair = (BitNetForCausalLM(CONFIG, path=path), BitNetForCausalLM(CONFIG, path=EXACT_FP32, plain=True))
    for model in pair:
        load_vector(model, initial_vector(CONFIG, seed=4) * 10)
    return pair


def tokens(count: int) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(2))


def near(found: Tensor, expected: Tensor, bound: float) -> None:
    error = (found.detach().cpu() - expected.detach()).norm() / expected.detach().norm()
    assert float(error) <= bound, float(error)


def bound_of(device: str, exact: float) -> float:
    """A GPU adds the norm in another order, which may move an activation code by one unit."""
    return exact if device == "cpu" else 2e-2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("forward", DEVICE_FORWARD)
def test_sums_equal_the_int64_reference(device: str, forward: str) -> None:
    """Catches sums returned in bf16, and int8 used at shapes that `_int_mm` refuses."""
    path = path_of(device, forward)
    generator = torch.Generator().manual_seed(0)
    for m, k, n in [(1, 31, 1), (1, 256, 48), (17, 31, 5), (17, 3072, 48), (128, 256, 64)]:
        x = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
        x[0] = -128
        codes = torch.randint(-1, 2, (n, k), generator=generator, dtype=torch.int8)
        codes[0] = 1
        sums = path.product(x.to(device), codes.to(device))
        assert torch.equal(sums.cpu().to(torch.int64), integer_product(x, codes)), (m, k, n)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("forward", DEVICE_FORWARD)
def test_stacked_layers_equal_the_definition_both_ways(device: str, forward: str) -> None:
    """Catches a scale of the wrong matrix, a missing factor in a gradient, and gradients that are cut off."""
    path = path_of(device, forward)
    weights = weights_of(device, (40, 64), (24, 64), (8, 64))
    weights[1].data.mul_(3)
    x = torch.randn(33, 64, generator=torch.Generator().manual_seed(3)) * 2
    inputs, reference = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    outputs = device_linear(inputs, weights, path=path, ternary=DeviceCodeCache().codes(weights))
    latent = [weight.detach().cpu().requires_grad_() for weight in weights]
    expected = [fake_quantized_linear(reference, weight) for weight in latent]
    slopes = [torch.randn_like(e) for e in expected]
    for found, wanted, weight in zip(outputs, expected, latent, strict=True):
        near(found, wanted, 1e-6)
        if device == "cpu":
            assert torch.equal(found, integer_linear(x, weight))
    torch.autograd.backward(outputs, [slope.to(device) for slope in slopes])
    torch.autograd.backward(expected, slopes)
    bound = 1e-5 if forward == "fp32" else 5e-3
    for found, wanted in zip((inputs, *weights), (reference, *latent), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        near(found.grad, wanted.grad, bound)
        if forward != "fp32":  # and bf16 is what was used
            assert float((found.grad.cpu() - wanted.grad).norm() / wanted.grad.norm()) > 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("forward", DEVICE_FORWARD)
def test_the_model_equals_the_reference_both_ways(device: str, forward: str) -> None:
    """Catches attention across segments, a wrong rotation, and a block that is wired otherwise."""
    path = path_of(device, forward)
    model, plain = models(path)
    ids, segments = tokens(int(LENGTHS.sum())), Segments.of_lengths(LENGTHS)
    hidden = model.packed(ids.to(device), segments.to(path.device))
    expected = plain.packed(ids, segments)
    near(hidden, expected, bound_of(device, 1e-5))
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    (hidden * direction.to(device)).sum().backward()
    (expected * direction).sum().backward()
    for (name, parameter), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert wanted.grad is not None
        assert parameter.device.type == device
        near(parameter.grad, wanted.grad, 1e-4 if forward == "fp32" and device == "cpu" else 2e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_plain_on_a_device_is_the_reference(device: str) -> None:
    path = path_of(device, "bf16")
    model, plain = models(path)
    model.compute.plain = True
    ids, segments = tokens(int(LENGTHS.sum())), Segments.of_lengths(LENGTHS)
    found, expected = model.packed(ids.to(device), segments.to(path.device)), plain.packed(ids, segments)
    if device == "cpu":
        assert torch.equal(found, expected)
    else:
        near(found, expected, bound_of(device, 0.0))


@pytest.mark.parametrize("device", DEVICES)
def test_padded_segments_and_the_cache_work_on_a_device(device: str) -> None:
    path = path_of(device, "bf16")
    model, plain = models(path)
    ids = tokens(20).reshape(2, 10)
    runs = torch.tensor([[0] * 4 + [1] * 6, [1] * 9 + [-1]])  # equal ids meet where rows do
    with torch.no_grad():
        expected = plain(ids, segment_ids=runs)
        near(model(ids.to(device), segment_ids=runs.to(device)), expected, bound_of(device, 1e-5))
        whole = plain(ids)
        near(model(ids.to(device)), whole, bound_of(device, 1e-5))
        cache = KVCache(CONFIG, batch=2, device=path.device)
        steps = [model(ids[:, :7].to(device), cache=cache)]
        steps += [model(ids[:, i : i + 1].to(device), cache=cache) for i in range(7, 10)]
        near(torch.cat(steps, dim=1), whole, bound_of(device, 1e-5))


@pytest.mark.parametrize("device", DEVICES)
def test_vectors_cross_to_the_device_and_back_bit_for_bit(device: str) -> None:
    model = BitNetForCausalLM(CONFIG, path=path_of(device, "bf16"))
    vector = initial_vector(CONFIG, seed=9)
    load_vector(model, vector)
    assert model.device.type == device
    assert flatten(model).tobytes() == vector.tobytes()


def test_codes_are_made_once_until_the_weights_change() -> None:
    weights = weights_of("cpu", (16, 8), (4, 8))
    cache = DeviceCodeCache()
    first = cache.codes(weights)
    assert cache.codes(weights) is first
    with torch.no_grad():
        weights[1].neg_()
    second = cache.codes(weights).codes
    assert torch.equal(second[:16], first.codes[:16])
    assert torch.equal(second[16:], -first.codes[16:])


def test_nothing_of_a_step_is_made_on_another_device() -> None:
    """Meta tensors refuse to mix with those of the CPU as CUDA's do; catches a mask or table left behind."""
    path = DevicePath.of(torch.device("meta"), "bf16")
    model = BitNetForCausalLM(CONFIG, path=path)
    segments = Segments.of_lengths(LENGTHS).to(path.device)
    hidden = model.packed(torch.zeros(35, dtype=torch.int64, device="meta"), segments)
    hidden.sum().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


def test_products_on_cuda_return_their_sums_in_fp32() -> None:
    """Without a GPU: fake CUDA tensors, which know types and shapes. A bf16 result would not be exact."""
    path = DevicePath.of(torch.device("cuda"), "bf16")
    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(128, 64, dtype=torch.int8, device="cuda")
        codes = torch.empty(32, 64, dtype=torch.int8, device="cuda")
        sums = path.product(x, codes)
        assert (sums.dtype, sums.device.type, tuple(sums.shape)) == (torch.float32, "cuda", (128, 32))
        assert DevicePath.of(path.device, "int8").product(x, codes).dtype == torch.int32
        few = torch.empty(16, 64, dtype=torch.int8, device="cuda")  # `_int_mm` takes more than 16 rows there
        assert DevicePath.of(path.device, "int8").product(few, codes).dtype == torch.float32


def test_forcing_cuda_without_a_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda-int8", "cuda-fp32"):
        with pytest.raises(InvalidConfig, match=f"'{name}' cannot be forced.*no CUDA device") as caught:
            choose_path([(32, 64, 64)], forced=name)
        assert "\n" not in caught.value.message
    with pytest.raises(UnknownName, match="cuda-int8"):
        choose_path([], forced="cuda+bf16")
    assert choose_path([], forced="fp32+fp32").name == "fp32+fp32"


def test_a_gpu_is_detected_and_used_unless_it_is_inexact(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = DevicePath.of(torch.device("cuda"), "bf16", reason="test")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "fastest", lambda shapes, device: gpu if device == gpu.device else "wrong")
    assert choose_path([(32, 64, 64)]) is gpu
    monkeypatch.setattr(module, "fastest", lambda shapes, device: "fp32 is inexact")
    found = choose_path([(32, 64, 64)])
    assert not isinstance(found, DevicePath)
    assert found.reason.endswith("the GPU is not used: fp32 is inexact")


def test_a_device_that_rounds_its_sums_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a probe that compares nothing, and a choice by speed alone."""
    honest = module.multiply

    def rounded(left: Tensor, right: Tensor) -> Tensor:
        result = honest(left, right)
        return result.bfloat16().float() if left.dtype == torch.bfloat16 else result

    cpu = torch.device("cpu")
    assert device_refusal(DevicePath.of(cpu, "bf16")) is None
    monkeypatch.setattr(module, "multiply", rounded)
    assert device_refusal(DevicePath.of(cpu, "bf16")) == "inexact"
    found = fastest([(32, 64, 64)], cpu)
    assert isinstance(found, DevicePath)
    assert found.forward != "bf16"
    assert "exact" in found.reason
    assert "x fp32" in found.reason


def test_a_device_without_the_products_says_so() -> None:
    """Torch's messages are long; the start of one goes into the log. The meta device holds no numbers."""
    meta = torch.device("meta")
    problem = device_refusal(DevicePath.of(meta, "bf16"))
    assert problem is not None
    assert problem.startswith("not available (")
    assert len(problem) < 120
    reason = fastest([(32, 64, 64)], meta)
    assert isinstance(reason, str)
    assert reason.count("not available") == len(DEVICE_FORWARD)


def test_precision_is_restored_after_an_error() -> None:
    """It is process-wide: a caller who wants TF32 for other work keeps it."""
    backend = torch.backends.cuda.matmul

    def fails_inside() -> None:
        with full_precision():
            assert backend.fp32_precision == "ieee"
            raise RuntimeError("product")

    before, backend.fp32_precision = backend.fp32_precision, "tf32"
    try:
        with pytest.raises(RuntimeError, match="product"):
            fails_inside()
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before
