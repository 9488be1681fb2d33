"""How fast a training step is on this machine, against fp32 fake quantisation and against its own products.

The roofline share is the time of the step's matrix products alone (every projection forward, dX and dW, the
head three times, attention's products), each timed at its shape and thread count, divided by the time of the
whole step from examples to updated weights. Attention is timed at one length, the mean weighted by tokens.
The products are those of the best exact path of the machine, not of the path in use. Our step and the
reference take turns, so that other load hits both alike.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch

from bithaul.errors import InvalidInput
from bithaul.model.config import ModelConfig
from bithaul.model.device import DevicePath, device_of, peak_bytes
from bithaul.model.products import BACKWARD, FORWARD, Shape, StepPath, choose_path, refusal
from bithaul.training.batches import Example
from bithaul.training.devicebench import device_product, reference_path
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer, projection_shapes, random_examples

WARM_UP_STEPS = 5
_PRODUCT_REPEATS = 15
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
    for step in range(steps):
        seconds["ours"] += _timed(ours, examples, 1)
        seconds["reference"] += _timed(plain, examples, 1)
        if on_step is not None:
            on_step(step + 1)
    torch.set_num_threads(threads)
    tokens = sum(len(e) - 1 for e in examples)
    alone = _best_product
    if isinstance(ours.path, DevicePath):
        alone = functools.partial(device_product, device=device_of(ours.path))
    products = sum(count * alone(name, shape) for name, shape, count in _products(config, examples))
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
        roofline_fraction=products / step_seconds,
        products_seconds=products,
        step_seconds=step_seconds,
        peak_memory_mb=memory / _MEGABYTE,
        path=ours.path.name,
        reason=ours.path.reason,
    )


def bench_gemm(config: ModelConfig, *, threads: int, rows: int) -> tuple[StepPath, list[Gemm]]:
    """Every kind of product at the shapes of the model's projections, and the path that would be chosen."""
    torch.set_num_threads(threads)
    path = choose_path(projection_shapes(config, rows))
    found = []
    for m, k, n in projection_shapes(config, rows):
        for name in ("int8", "bf16", "fp32"):
            seconds = _best_product(name, (m, k, n))
            found.append(Gemm(name, (m, k, n), seconds * 1e3, 2 * m * k * n / seconds / 1e9))
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


def _products(config: ModelConfig, examples: Sequence[Example]) -> list[tuple[str, Shape, int]]:
    """(kind, (M, K, N), how often in one step) of all matrix products, attention's at real lengths."""
    rows, layers = sum(len(e) - 1 for e in examples), config.num_layers
    found: list[tuple[str, Shape, int]] = []
    for m, k, n in projection_shapes(config, rows):
        found += [("int8", (m, k, n), layers), ("bf16", (m, n, k), layers), ("bf16", (n, m, k), layers)]
    v, h = config.vocab_size, config.hidden_size
    found += [("bf16", (rows, h, v), 1), ("bf16", (rows, v, h), 1), ("bf16", (v, rows, h), 1)]
    mean = max(1, round(sum((len(e) - 1) ** 2 for e in examples) / rows))
    heads, d = config.num_heads * max(1, rows // mean), config.head_dim
    found += [("attention", (heads, mean, d), 6 * layers)]
    return found


def _best_product(name: str, shape: Shape) -> float:
    """Seconds of a product on the fastest exact way this machine has for its kind; median of several."""
    m, k, n = shape
    runs: list[Callable[[], object]] = []
    if name == "attention":
        a, b = torch.ones(m, k, n), torch.ones(m, n, k)
        runs.append(functools.partial(torch.bmm, a, b))
    elif name == "int8":
        x, codes = torch.ones(m, k, dtype=torch.int8), torch.ones(n, k, dtype=torch.int8)
        for kernel in (FORWARD[f] for f in FORWARD if refusal(f) is None):
            out = torch.empty((m, n), dtype=kernel.sums)
            runs.append(functools.partial(kernel.multiply, x, kernel.prepare(codes), out))
    else:
        for dtype in list(BACKWARD.values()) if name == "bf16" else [torch.float32]:
            left, right = torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype)
            runs.append(functools.partial(torch.mm, left, right, out=torch.empty((m, n), dtype=dtype)))
    return min(_median_seconds(run) for run in runs)


def _median_seconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(_PRODUCT_REPEATS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
