"""Which products a step uses on this machine: the fastest exact ones at the model's own shapes, and why.

A step's threads take whole passes by themselves (`training.team`), so products are timed on one thread. The
candidates take turns, which keeps a busy moment from deciding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from bithaul.errors import InvalidConfig, UnknownName
from bithaul.model.bitlinear import TernaryCodes
from bithaul.model.products import (
    BACKWARD,
    FORWARD,
    WORDS,
    Shape,
    StepPath,
    backward_refusal,
    product_rows,
    refusal,
)
from bithaul.model.wayback import blocks, way_back

_ROUNDS = 3
_FIRST: Shape = (32, 64, 32)  # small, to compile with
_HOPELESS = 10.0  # times the fastest


def choose_path(shapes: Sequence[Shape], *, forced: str | None = None) -> StepPath:
    """The fastest exact path for products of these shapes on one thread of this machine.

    `forced` names a path such as `int_mm+bf16` and skips the timing. Raises `UnknownName` for a path that
    does not exist and `InvalidConfig` for one that this machine cannot run exactly.
    """
    if forced is not None:
        return _forced(forced)
    forward_ways = [name for name in FORWARD if refusal(name) is None]
    backward_ways = [name for name in BACKWARD if backward_refusal(name) is None]
    with _one_thread():
        for name in backward_ways:  # compiled before it is timed; forward ways have been by `refusal`
            _backward(name, _FIRST)()
        forwards = _times({name: [_forward(name, shape) for shape in shapes] for name in forward_ways})
        backwards = _times({name: [_backward(name, shape) for shape in shapes] for name in backward_ways})
    forward, backward = min(forwards, key=forwards.__getitem__), min(backwards, key=backwards.__getitem__)
    reason = (
        f"{forward} forward ({_instructions()}, exact, {forwards['fp32'] / forwards[forward]:.1f}x fp32), "
        f"{backward} backward ({backwards['fp32'] / backwards[backward]:.1f}x fp32), eager"
    )
    return StepPath(forward, backward, reason)


def _forced(name: str) -> StepPath:
    forward, _, backward = name.partition("+")
    if forward not in FORWARD or backward not in BACKWARD:
        known = ", ".join(f"{f}+{b}" for f in FORWARD for b in BACKWARD)
        on_gpu = "on a GPU cuda, cuda-int8, cuda-fp32"
        raise UnknownName(f"There is no compute path {name!r}; the paths are {known}, and {on_gpu}.")
    unavailable = backward_refusal(backward) if backward == WORDS else None  # a slow way may be forced
    for part, problem in ((forward, refusal(forward)), (backward, unavailable)):
        if problem is not None:
            raise InvalidConfig(
                f"The compute path {name!r} cannot be forced on this machine: {part} is {problem}."
            )
    return StepPath(forward, backward, f"{name} (forced)")


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _times(runs: Mapping[str, Sequence[Callable[[], object]]]) -> dict[str, float]:
    """Seconds of all runs of each candidate: the best of several rounds in which they take turns.

    Who takes many times as long as the fastest in the first round is not asked again: a loop for machines
    without the instructions would cost seconds.
    """
    best = {name: [_seconds(run) for run in parts] for name, parts in runs.items()}
    fastest = min(sum(seconds) for seconds in best.values())
    for _ in range(_ROUNDS):
        for name, parts in runs.items():
            if sum(best[name]) <= _HOPELESS * fastest:
                best[name] = [min(b, _seconds(run)) for b, run in zip(best[name], parts, strict=True)]
    return {name: sum(seconds) for name, seconds in best.items()}


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _forward(name: str, shape: Shape) -> Callable[[], object]:
    """As in a step: the operand prepared once, then blocks of rows."""
    m, k, n = shape
    x, codes = torch.ones(m, k, dtype=torch.int8), torch.ones(n, k, dtype=torch.int8)
    kernel = FORWARD[name]
    step = product_rows(n)
    sums = torch.empty((min(m, step), n), dtype=kernel.sums)

    def run() -> None:
        operand = kernel.prepare(codes)
        for rows in torch.split(x, step):
            kernel.multiply(rows, operand, sums[: len(rows)])

    return run


def _backward(name: str, shape: Shape) -> Callable[[], object]:
    """As in a step: dX in blocks of rows, dW; with 16-bit integers their rounding too."""
    m, k, n = shape
    path = StepPath("fp32", name, "")
    codes, x = torch.ones((n, k), dtype=torch.int8), torch.ones((m, k), dtype=torch.int8)
    words = path.prepare_backward(codes)
    ternary = TernaryCodes((), path, codes, codes, words, (np.float32(1.0),), (n,))

    def run() -> None:
        way = way_back("timing", x, ternary, path)
        for rows in blocks(m):
            way.block(rows).fill_(1.0)
            way.input_gradient(rows)
        way.weight_gradients()

    return run


def _instructions() -> str:
    """The CPU features behind the choice; torch's probes are private, so their absence is survived."""
    probes = {
        "AMX": "_is_amx_tile_supported",
        "AVX-512 VNNI": "_is_vnni_supported",
        "AVX2": "_is_avx2_supported",
    }
    for label, probe in probes.items():
        supported = getattr(torch.cpu, probe, None)
        if supported is not None and supported():
            return label
    return "no int8 instructions known"
