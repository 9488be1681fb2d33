"""How fast a training step is on this machine, against fp32 fake quantisation and against its own products.

The roofline share is the time of the step's matrix products alone (`ceilings`), divided by the time of the
whole step from examples to updated weights. Our steps and the reference's take turns, a few at a time, so
that other load hits both alike and neither always begins with the other's memory in the caches.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch

from bithaul.errors import InvalidInput
from bithaul.model.config import ModelConfig
from bithaul.model.device import DevicePath, choose_path, peak_bytes
from bithaul.model.products import Shape, StepPath
from bithaul.training.batches import Example
from bithaul.training.ceilings import Kind, Product, product_seconds, step_products
from bithaul.training.devicebench import device_product, reference_path
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer, projection_shapes, random_examples

WARM_UP_STEPS = 5
_GEMMS: tuple[tuple[str, Kind, bool], ...] = (
    ("int8", "forward", False),
    ("dX", "input_gradient", False),
    ("dW", "weight_gradient", False),
    ("fp32", "forward", True),
)
_TURN = 5
_MEGABYTE = 1e6


@dataclass(frozen=True)
class StepBench:
    """Speeds in targets trained per second (medians over steps), times in seconds."""

    parameters: int
    tokens_per_step: int
    tokens_per_second: float
    spread: float  # half the distance between the quartiles, tokens per second
    reference_tokens_per_second: float
    speedup: float
    roofline_fraction: float
    products_seconds: float
    products_by_kind: dict[str, float]  # seconds of all products of a kind in one step
    step_seconds: float
    peak_memory_mb: float  # most memory until our steps ended: resident, or that of tensors on a GPU
    path: str
    reason: str


@dataclass(frozen=True)
class Gemm:
    """One product M x K x N alone: milliseconds and 10^9 operations per second."""

    name: str
    shape: Shape
    milliseconds: float
    gops: float


def bench_step(
    config: ModelConfig,
    recipe: TrainingRecipe,
    *,
    threads: int,
    examples: Sequence[Example],
    steps: int,
    path: str | StepPath | None = None,
    on_step: Callable[[int], None] | None = None,
) -> StepBench:
    """Steps of all `examples` at once, `steps` of each kind after a warm-up."""
    if steps < 2:
        raise InvalidInput(f"A benchmark needs at least 2 steps, not {steps}.")
    recipe = recipe.model_copy(update={"batch_examples": len(examples)})
    ours = Trainer(config, recipe, label_token=None, threads=threads, path=path)
    _timed(ours, examples, WARM_UP_STEPS)
    memory = peak_bytes(ours.device) or _peak_memory()
    reference_on = reference_path(ours.path)
    plain = Trainer(config, recipe, label_token=None, threads=threads, path=reference_on, plain=True)
    _timed(plain, examples, 1)
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    for done in range(0, steps, _TURN):
        turn = range(done, min(done + _TURN, steps))
        seconds["ours"] += _timed(ours, examples, len(turn))
        for step in turn:
            seconds["reference"] += _timed(plain, examples, 1)
            if on_step is not None:
                on_step(step + 1)
    torch.set_num_threads(threads)
    tokens = sum(len(e) - 1 for e in examples)
    products: dict[str, float] = {}
    for product, count in step_products(config, examples):
        if isinstance(ours.path, DevicePath):
            alone = device_product(product, ours.path.device)
        else:
            alone = product_seconds(product, threads=threads)
        products[product.kind] = products.get(product.kind, 0.0) + count * alone
    step_seconds = statistics.median(seconds["ours"])
    reference = statistics.median(seconds["reference"])
    speeds = [tokens / s for s in seconds["ours"]]
    low, _, high = statistics.quantiles(speeds, n=4)
    return StepBench(
        parameters=sum(p.numel() for p in ours.model.parameters()),
        tokens_per_step=tokens,
        tokens_per_second=tokens / step_seconds,
        spread=(high - low) / 2,
        reference_tokens_per_second=tokens / reference,
        speedup=reference / step_seconds,
        roofline_fraction=sum(products.values()) / step_seconds,
        products_seconds=sum(products.values()),
        products_by_kind=products,
        step_seconds=step_seconds,
        peak_memory_mb=memory / _MEGABYTE,
        path=ours.path.name,
        reason=ours.path.reason,
    )


def bench_gemm(
    config: ModelConfig,
    *,
    threads: int,
    rows: int,
    on_product: Callable[[int, int], None] | None = None,
) -> tuple[StepPath, list[Gemm]]:
    """Every kind of product at the shapes of the model's projections, and the path that would be chosen.

    `on_product` hears how many are done, of how many.
    """
    shapes = projection_shapes(config, rows)
    path = choose_path(shapes)
    found: list[Gemm] = []
    for m, k, n in shapes:
        for name, kind, fp32 in _GEMMS:
            product = Product(kind, m, k, n)
            seconds = product_seconds(product, threads=threads, fp32=fp32)
            found.append(Gemm(name, (m, k, n), seconds * 1e3, product.operations / seconds / 1e9))
            if on_product is not None:
                on_product(len(found), len(shapes) * len(_GEMMS))
    return path, found


def _peak_memory() -> int:
    """Most resident memory this process ever had, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def examples_of(config: ModelConfig, *, count: int, shortest: int, longest: int) -> list[Example]:
    """Random token ids, `shortest` to `longest` targets an example, evenly spread."""
    if not 1 <= shortest <= longest <= config.context_length:
        raise InvalidInput(
            f"Lengths run from 1 to the context of {config.context_length}, not from {shortest} to {longest}."
        )
    whole = random_examples(config, count=count, tokens=longest + 1, seed=0)
    lengths = [longest - (longest - shortest) * i // max(1, count - 1) for i in range(count)]
    return [example[: length + 1] for example, length in zip(whole, lengths, strict=True)]


def _timed(trainer: Trainer, examples: Sequence[Example], steps: int) -> list[float]:
    found = []
    for step in range(steps):
        started = time.perf_counter()
        trainer.train(examples, progress_start=0.1, progress_end=0.1, seed=step)
        found.append(time.perf_counter() - started)
    return found
