"""Training on the path of a device against the reference: on the CPU, and on CUDA where there is a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bithaul.model.config import ModelConfig
from bithaul.model.device import DEVICE_FORWARD, DevicePath, device_refusal
from bithaul.model.init import initial_vector
from bithaul.model.products import EXACT_FP32
from bithaul.training import bench, deviceloss
from bithaul.training.bench import bench_step, examples_of
from bithaul.training.calibrate import calibrate
from bithaul.training.ceilings import Kind, Product, step_products
from bithaul.training.devicebench import device_product, reference_path
from bithaul.training.deviceloss import device_head_loss
from bithaul.training.loss import head_loss
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer, random_examples

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, context_length=32
)
RECIPE = TrainingRecipe(peak_lr=3e-3, batch_examples=4, optimizer_warmup_steps=2)
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
CPU = torch.device("cpu")


def path_of(device: str, forward: str = "bf16") -> DevicePath:
    path = DevicePath.of(torch.device(device), forward, reason="test")
    if (reason := device_refusal(path)) is not None:
        pytest.skip(f"{path.name} is {reason} here")
    return path


def trainer(
    path: DevicePath | str, recipe: TrainingRecipe = RECIPE, *, plain: bool = False, label: int | None = None
) -> Trainer:
    made = Trainer(CONFIG, recipe, label_token=label, threads=1, path=path, plain=plain)
    made.load(initial_vector(CONFIG, seed=11))
    return made


def uneven(count: int, *, seed: int = 1) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 97, n, dtype=np.int32) for n in random.integers(4, 22, count)]


def gradients(subject: Trainer) -> Tensor:
    return torch.cat([p.grad.flatten().cpu() for p in subject.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_head_loss_in_blocks_equals_the_one_of_the_cpu(
    device: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a block that is lost, a row of weight 0 that counts, and logits that exist all at once."""
    monkeypatch.setattr(deviceloss, "_BLOCK_VALUES", 7 * 97)
    sizes: list[int] = []
    honest = deviceloss.multiply

    def seen(left: Tensor, right: Tensor) -> Tensor:
        result = honest(left, right)
        sizes.append(len(result) if result.shape[1] == 97 else 0)
        return result

    monkeypatch.setattr(deviceloss, "multiply", seen)
    generator = torch.Generator().manual_seed(0)
    hidden, table = torch.randn(50, 64, generator=generator), torch.randn(97, 64, generator=generator) * 0.3
    targets = torch.randint(0, 97, (50,), generator=generator)
    weights = torch.tensor([1.0, 0.3, 0.0, 1.0, 1.0]).repeat(10)
    both = []
    for function, where in ((device_head_loss, device), (head_loss, "cpu")):
        inputs = [part.clone().to(where).requires_grad_() for part in (hidden, table)]
        loss, sums = function(
            *inputs, targets.to(where), weights.to(where), total_weight=40.0, smoothing=smoothing
        )
        (loss * 2).backward()
        both.append((loss.detach(), sums, [part.grad for part in inputs]))
    (loss, sums, found), (expected_loss, expected_sums, expected) = both
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    for name in ("weighted", "weight", "plain", "tokens"):
        assert getattr(sums, name) == pytest.approx(getattr(expected_sums, name), rel=1e-5), name
    for mine, reference in zip(found, expected, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine.cpu(), reference, rtol=1e-4, atol=1e-6)
    assert max(sizes) == 7
    assert sum(sizes) == 50


def test_head_loss_rounds_where_it_is_told_to_and_needs_no_gradient() -> None:
    hidden, table = torch.randn(9, 64), torch.randn(97, 64)
    targets, weights = torch.arange(9), torch.ones(9)
    with torch.no_grad():
        exact = float(device_head_loss(hidden, table, targets, weights)[0])
        rounded = float(device_head_loss(hidden, table, targets, weights, dtype=torch.bfloat16)[0])
    assert exact == pytest.approx(
        float(torch.nn.functional.cross_entropy(hidden @ table.t(), targets)), rel=1e-5
    )
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("forward", DEVICE_FORWARD)
def test_one_step_equals_the_reference(device: str, forward: str) -> None:
    """Gradients, moments and rates of a step with padding, label weights and decay."""
    recipe = RECIPE.model_copy(update={"batch_examples": 64, "clip": 1e9})
    subject, plain = (
        trainer(path_of(device, forward), recipe, label=5),
        trainer("fp32+fp32", recipe, plain=True, label=5),
    )
    start = plain.vector()
    for one in (subject, plain):
        one.train(uneven(64), progress_start=0.1, progress_end=0.1, seed=0)
    found, expected = gradients(subject), gradients(plain)
    tight = forward == "fp32" and device == "cpu"
    assert float((found - expected).norm() / expected.norm()) < (5e-4 if tight else 3e-2)
    if forward != "fp32":
        assert float((found - expected).norm() / expected.norm()) > 5e-4  # bf16 was used
    moved, wanted = subject.vector() - start, plain.vector() - start
    alike = np.abs(moved - wanted) < 0.02 * np.abs(wanted).max()
    assert alike.mean() > (
        0.999 if tight else 0.9
    )  # the first step of AdamW is a sign, lost where it is near 0


@pytest.mark.parametrize("device", DEVICES)
def test_plain_on_a_device_trains_like_plain(device: str) -> None:
    subject = trainer(path_of(device), RECIPE.model_copy(update={"clip": 1e9}), plain=True)
    plain = trainer("fp32+fp32", RECIPE.model_copy(update={"clip": 1e9}), plain=True)
    for one in (subject, plain):
        one.train(uneven(4), progress_start=0.1, progress_end=0.1, seed=0)
    found, expected = gradients(subject), gradients(plain)
    assert float((found - expected).norm() / expected.norm()) < (1e-5 if device == "cpu" else 2e-2)
    items = uneven(8, seed=5)
    assert subject.evaluate(items).loss == pytest.approx(plain.evaluate(items).loss, rel=1e-3)
    assert subject.evaluate(items).tokens == plain.evaluate(items).tokens


@pytest.mark.parametrize("device", DEVICES)
def test_a_stop_and_resume_equals_no_stop(device: str) -> None:
    """Moments leave the device as CPU tensors, so they can be kept anywhere, and come back to it."""
    path, recipe = path_of(device), RECIPE.model_copy(update={"dropout": 0.1})
    whole, first, second = trainer(path, recipe), trainer(path, recipe), trainer(path, recipe)
    for one in (whole, first):
        one.train(uneven(8), progress_start=0.1, progress_end=0.1, seed=1)
    state = first.state_dict()
    moments = [value for row in state["moments"].values() for value in row.values()]
    assert moments
    assert all(value.device == CPU for value in moments)
    second.load(first.vector())
    second.load_state_dict(state)
    for one in (whole, second):
        one.train(uneven(8, seed=2), progress_start=0.1, progress_end=0.1, seed=2)
    found, expected = second.vector(), whole.vector()
    if device == "cpu":
        assert found.tobytes() == expected.tobytes()
    else:
        assert np.abs(found - expected).max() < 1e-3
    kept = {p: m for share in second._optimizer._shares for p, m in share.adamw.state.items()}
    assert kept
    assert all(moments["exp_avg"].device == parameter.device for parameter, moments in kept.items())


def test_fresh_codes_after_every_step() -> None:
    """The fused optimizer advances no version counter; old codes would train a model that stands still."""
    subject, items = trainer(path_of("cpu"), RECIPE.model_copy(update={"peak_lr": 0.05})), uneven(8)
    subject.train(items, progress_start=0.1, progress_end=0.2, seed=0)
    fresh = trainer(path_of("cpu"))
    fresh.load(subject.vector())
    assert fresh.evaluate(items).loss == subject.evaluate(items).loss


@pytest.mark.parametrize("device", DEVICES)
def test_short_training_agrees_with_the_reference(device: str) -> None:
    """Mean of four seeds: one run of either side is off by a tenth where the loss is steep."""
    starts = np.random.default_rng(0).integers(0, 97, 240)
    items = [((start + np.arange(14) * 3) % 97).astype(np.int32) for start in starts]
    losses = []
    for subject in (trainer(path_of(device)), trainer("fp32+fp32", plain=True)):
        found = []
        for seed in range(4):
            subject.load(initial_vector(CONFIG, seed=seed))
            subject.reset_moments()
            subject.train(items, progress_start=0.1, progress_end=0.2, seed=1)
            found.append(subject.evaluate(items[:32]).loss)
        losses.append(np.mean(found))
    assert losses[1] < 3.5
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_threads_share_nothing_on_a_device() -> None:
    """One device, one stream of work: more threads must not cut a batch into parts."""
    subject = Trainer(CONFIG, RECIPE, label_token=None, threads=2, path=path_of("cpu"))
    torch.set_num_threads(1)
    assert len(subject._pack(uneven(4))) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_calibration_and_bench_take_the_path_and_report_it(device: str) -> None:
    path = path_of(device)
    found = calibrate(CONFIG, RECIPE, threads=1, seconds=0.1, path=path)
    assert (found.path, found.reason) == (device, "test")
    assert found.tokens_per_second > 0
    assert found.memory_bytes > 0
    batch = examples_of(CONFIG, count=4, shortest=8, longest=32)
    measured = bench_step(CONFIG, RECIPE, threads=1, examples=batch, steps=2, path=path)
    assert (measured.path, measured.reason) == (device, "test")
    assert measured.products_seconds > 0
    assert measured.peak_memory_mb > 0.1


def test_memory_of_a_gpu_is_what_its_tensors_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches resident memory reported for a GPU."""
    for place in ("bithaul.training.bench.peak_bytes", "bithaul.training.calibrate.peak_bytes"):
        monkeypatch.setattr(place, lambda device: 5_000_000)
    monkeypatch.setattr(bench, "device_product", lambda product, device: 1e-3)
    batch = examples_of(CONFIG, count=2, shortest=8, longest=8)
    measured = bench_step(CONFIG, RECIPE, threads=1, examples=batch, steps=2, path=path_of("cpu"))
    assert measured.peak_memory_mb == 5.0
    calls = sum(count for _, count in step_products(CONFIG, batch))
    assert measured.products_seconds == pytest.approx(calls * 1e-3)
    assert calibrate(CONFIG, RECIPE, threads=1, seconds=0.1, path=path_of("cpu")).memory_bytes == 5_000_000


def test_the_reference_of_a_bench_is_on_the_same_device() -> None:
    """Against fp32 on the CPU, every GPU would look a hundred times as fast."""
    gpu = torch.device("cuda")
    found = reference_path(DevicePath.of(gpu, "int8"))
    assert isinstance(found, DevicePath)
    assert (found.name, found.device) == ("cuda-fp32", gpu)
    assert reference_path(EXACT_FP32) == "fp32+fp32"


@pytest.mark.parametrize("kind", ["forward", "input_gradient", "weight_gradient", "head", "attention"])
def test_products_are_timed_on_the_device(kind: Kind) -> None:
    assert 0 < device_product(Product(kind, 32, 64, 32), CPU) < 1


def test_examples_on_a_device_are_checked_first() -> None:
    """An id outside the vocabulary would be an assertion inside the GPU, after which nothing works there."""
    items = random_examples(CONFIG, count=4, tokens=12, seed=0)
    items[2][3] = 97
    with pytest.raises(Exception, match="not in the vocabulary of 97"):
        trainer(path_of("cpu")).train(items, progress_start=0.1, progress_end=0.1, seed=0)
