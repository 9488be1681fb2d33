"""The matrix products of a step alone, at their exact shapes, each on the fastest exact way this machine has.

Every projection forward, dX and dW, the head three times, attention's products. Threads share the rows of a
product as they do in a step (`team`), and none waits for anything but the slowest. Attention is timed at one
length, the mean weighted by tokens. The ways are those of the machine, not of the path in use.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from bithaul.model.config import ModelConfig
from bithaul.model.products import BACKWARD, FORWARD, WORDS, StepPath, backward_refusal, refusal
from bithaul.model.wayback import blocks
from bithaul.training.batches import Example
from bithaul.training.team import Team
from bithaul.training.trainer import projection_shapes

Kind = Literal["forward", "input_gradient", "weight_gradient", "head", "attention"]
Run = Callable[[], object]

_REPEATS = 15


@dataclass(frozen=True)
class Product:
    """[rows, inputs] by [inputs, outputs], transposed as `kind` says; threads share the rows.

    `attention` is `rows` times [inputs, outputs] by [outputs, inputs].
    """

    kind: Kind
    rows: int
    inputs: int
    outputs: int

    @property
    def operations(self) -> int:
        single = 2 * self.rows * self.inputs * self.outputs
        return single * self.inputs if self.kind == "attention" else single


def step_products(config: ModelConfig, examples: Sequence[Example]) -> list[tuple[Product, int]]:
    """All products of a step on `examples` with how often each is taken."""
    rows, layers = sum(len(e) - 1 for e in examples), config.num_layers
    kinds: tuple[Kind, ...] = ("forward", "input_gradient", "weight_gradient")
    shapes = projection_shapes(config, rows)
    found = [(Product(kind, m, k, n), layers) for m, k, n in shapes for kind in kinds]
    found.append((Product("head", rows, config.hidden_size, config.vocab_size), 3))
    mean = max(1, round(sum((len(e) - 1) ** 2 for e in examples) / rows))
    heads = config.num_heads * max(1, rows // mean)
    found.append((Product("attention", heads, mean, config.head_dim), 6 * layers))
    return found


def product_seconds(product: Product, *, threads: int, fp32: bool = False) -> float:
    """Seconds of a product on the fastest exact way (`fp32`: in fp32), the median of several."""
    team = Team(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        share = replace(product, rows=-(-product.rows // threads))
        ways = list(_ways(share, fp32))  # asked once: a way near the limit is not slow for one thread only
        return min(_median_seconds(team, [make() for _ in range(threads)]) for make in ways)
    finally:
        torch.set_num_threads(before)
        team.close()


def _median_seconds(team: Team, runs: Sequence[Run]) -> float:
    times = []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        team.each(lambda run: run(), runs)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _ways(product: Product, fp32: bool) -> Iterator[Callable[[], Run]]:
    """What makes each way ready, once for each thread."""
    m, k, n = product.rows, product.inputs, product.outputs
    floats = [d for way, d in BACKWARD.items() if way != WORDS and backward_refusal(way) is None]
    dtypes = [torch.float32] if fp32 else floats
    if product.kind == "attention":
        yield from (partial(_batch, m, k, n, dtype) for dtype in dtypes)
    elif product.kind == "forward" and not fp32:
        names = (name for name in FORWARD if _together(name) and refusal(name) is None)
        yield from (partial(_forward, name, m, k, n) for name in names)
    elif product.kind == "input_gradient":
        yield from (partial(_float, m, n, k, dtype) for dtype in dtypes)
    elif product.kind == "weight_gradient":
        yield from (partial(_float, n, m, k, dtype) for dtype in dtypes)
    else:
        yield from (partial(_float, m, k, n, dtype) for dtype in dtypes)
    if not fp32 and backward_refusal(WORDS) is None:
        if product.kind == "input_gradient":
            yield partial(_words, m, n, k)
        elif product.kind == "weight_gradient":
            yield partial(_added_words, n, m, k)


def _together(name: str) -> bool:
    """Whether threads can multiply this way at once: a switch of the whole process, left on, would change
    what is measured after it."""
    return FORWARD[name].thread_safe


def _forward(name: str, m: int, k: int, n: int) -> Run:
    kernel = FORWARD[name]
    x, codes = torch.ones(m, k, dtype=torch.int8), torch.ones(n, k, dtype=torch.int8)
    operand, out = kernel.prepare(codes), torch.empty((m, n), dtype=kernel.sums)
    return lambda: kernel.multiply(x, operand, out)


def _float(m: int, k: int, n: int, dtype: torch.dtype) -> Run:
    left, right = torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype)
    out = torch.empty((m, n), dtype=dtype)
    return lambda: torch.mm(left, right, out=out)


def _batch(m: int, k: int, n: int, dtype: torch.dtype) -> Run:
    left, right = torch.ones(m, k, n, dtype=dtype), torch.ones(m, n, k, dtype=dtype)
    out = torch.empty((m, k, k), dtype=dtype)
    return lambda: torch.bmm(left, right, out=out)


def _words(m: int, k: int, n: int) -> Run:
    from bithaul.model import integer  # compiled for machines with AVX2 only

    left, right, out = _word_operands(m, k, n)
    return lambda: integer.multiply_words(left, right, np.float32(1.0), out)


def _added_words(m: int, k: int, n: int) -> Run:
    """In blocks of rows as a step has them, each added to the sum of those before."""
    from bithaul.model import integer

    parts = [_word_operands(m, rows.stop - rows.start, n) for rows in blocks(k)]
    scales, out = np.ones(m, np.float32), parts[0][2]

    def run() -> None:
        for i, (left, right, _) in enumerate(parts):
            integer.add_words(left, right, scales, i == 0, out)

    return run


Words = npt.NDArray[np.int32]


def _word_operands(m: int, k: int, n: int) -> tuple[Words, Words, npt.NDArray[np.float32]]:
    from bithaul.model import integer

    right = StepPath("fp32", WORDS, "").prepare_backward(torch.ones((k, n), dtype=torch.int8))
    assert right is not None
    left = np.ones((integer.panels(m, integer.ROWS), integer.panels(k, 2), integer.ROWS), np.int32)
    return left, right.numpy(), np.empty((m, n), np.float32)
