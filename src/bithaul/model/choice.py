"""Which products a step uses on this machine: the fastest exact ones at the model's own shapes, and why.

A step's threads take whole passes by themselves (`training.team`), so products are timed on one thread. The
candidates take turns, which keeps a busy moment from deciding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from bithaul.errors import InvalidConfig, UnknownName
from bithaul.model.bitlinear import TernaryCodes
from bithaul.model.products import (
    BACKWARD,
    FORWARD,
    Shape,
    StepPath,
    backward_refusal,
    backward_unusable,
    one_thread,
    product_rows,
    refusal,
    unusable,
)
from bithaul.model.scratch import release
from bithaul.model.wayback import blocks, way_back

_ROUNDS = 3
_FIRST: Shape = (32, 64, 32)  # small, to compile with
_HOPELESS = 10.0  # times the fastest
_TIE = 1.05  # times the fastest: as fast
_ONE_IN_BF16 = 0x3F80


def choose_path(shapes: Sequence[Shape], *, forced: str | None = None) -> StepPath:
    """The fastest exact path for products of these shapes on one thread of this machine.

    `forced` names a path such as `int_mm+bf16`, which may be a slow one, and skips the timing. Raises
    `UnknownName` for a path that does not exist, `InvalidConfig` for one that is not exact on this machine.
    """
    if forced is not None:
        return _forced(forced)
    refused = {name: refusal(name) for name in FORWARD}
    refused |= {f"{name} backward": backward_refusal(name) for name in BACKWARD}
    forward_ways = [name for name in FORWARD if refused[name] is None]
    backward_ways = [name for name in BACKWARD if refused[f"{name} backward"] is None]
    with one_thread():
        for name in backward_ways:  # compiled before it is timed; forward ways have been by `refusal`
            _backward(name, _FIRST)()
        forwards = _times({name: [_forward(name, shape) for shape in shapes] for name in forward_ways})
        backwards = _times({name: [_backward(name, shape) for shape in shapes] for name in backward_ways})
    release()
    forward, backward = _best(forwards), _best(backwards)
    reason = (
        f"{forward} forward ({_instructions()}, exact, {forwards['fp32'] / forwards[forward]:.1f}x fp32), "
        f"{backward} backward ({backwards['fp32'] / backwards[backward]:.1f}x fp32), eager"
    )
    left_out = "; ".join(f"{name} is {why}" for name, why in refused.items() if why is not None)
    return StepPath(forward, backward, f"{reason}. Not used: {left_out}" if left_out else reason)


def _best(seconds: Mapping[str, float]) -> str:
    """The first in the table of those that are as fast as the fastest, so that noise seldom decides."""
    fastest = min(seconds.values())
    return next(name for name, taken in seconds.items() if taken <= _TIE * fastest)


def _forced(name: str) -> StepPath:
    forward, _, backward = name.partition("+")
    if forward not in FORWARD or backward not in BACKWARD:
        known = ", ".join(f"{f}+{b}" for f in FORWARD for b in BACKWARD)
        on_gpu = "on a GPU cuda, cuda-int8, cuda-fp32"
        raise UnknownName(f"There is no compute path {name!r}; the paths are {known}, and {on_gpu}.")
    for part, problem in ((forward, unusable(forward)), (backward, backward_unusable(backward))):
        if problem is not None:
            raise InvalidConfig(
                f"The compute path {name!r} cannot be forced on this machine: {part} is {problem}."
            )
    return StepPath(forward, backward, f"{name} (forced)")


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
            block = way.block(rows)
            block.fill(_ONE_IN_BF16 if block.dtype == np.uint16 else 1.0)
            way.multiply(rows)
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
