"""The matrix products of a training step: every way there is, and whether this machine can go it.

The forward product is int8 times {-1, 0, 1}; every candidate here returns the exact integer sum, so which one
is used changes the speed and never a number. Backward products run in bf16, fp32 or 16-bit integers. A
candidate is tried at a tiny shape against an integer reference before it may be used; `choice` takes the
fastest.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bithaul.model import tiles

Shape = tuple[int, int, int]
"""(M, K, N): rows, inputs, outputs of one product."""

_SUMS_KEPT = 1 << 18  # 1 MiB of sums, half of a usual second-level cache


def product_rows(outputs: int) -> int:
    """Rows of one forward product: few enough for its sums to stay in the cache until they are used."""
    return max(128, min(256, _SUMS_KEPT // outputs))


_PROBE: Shape = (32, 64, 32)
_TIMING_REPEATS = 5
_PROBE_SECONDS = 0.05  # a path slower than this at 32 x 64 x 32 is a reference loop, not a kernel;
_SPEED_PROBE: Shape = (128, 128, 128)
_LOOP_RATIO = 20.0  # nor is one that takes so many times as long as fp32 at a shape of some work
_DEFAULT: Shape = (64, 256, 256)
_PROBE_BACKWARD = 128  # rows, inputs and outputs; a loop for bf16 is ten times slower than fp32 there
_PROBE_RATIO = 3.0


@contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    """fp32 products on the CPU with inputs rounded to bf16 (`"bf16"`) or not (`"ieee"`); restored after."""
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set up at run time
    before = backend.fp32_precision
    backend.fp32_precision = value
    try:
        yield
    finally:
        backend.fp32_precision = before


def step_precision(gradients: torch.dtype) -> AbstractContextManager[None]:
    """How a step multiplies what stays in fp32: with inputs rounded to bf16 where gradients are.

    That is attention and the logits of an evaluation. Sums are fp32. Holds for all threads of the process, so
    it is set around a whole step.
    """
    return matmul_precision("bf16" if gradients == torch.bfloat16 else "ieee")


@dataclass(frozen=True)
class Kernel:
    """One way to multiply int8 [M, K] by int8 codes [N, K] transposed, with exact sums.

    `prepare` turns the codes into the kernel's own operand, once per optimizer step; `product` takes rows,
    that operand and memory for the result, and gives [M, N] of type `sums`, in that memory where it can.
    """

    prepare: Callable[[Tensor], Tensor]
    product: Callable[[Tensor, Tensor, Tensor], Tensor]
    sums: torch.dtype
    thread_safe: bool = True  # False: it flips the process-wide precision, so one thread at a time

    def multiply(self, x: Tensor, operand: Tensor, out: Tensor) -> Tensor:
        """int8 [M, K] times the prepared codes: [M, N], in `out` [M, N] where the kernel can."""
        return self.product(x, operand, out)


def _int_mm(x: Tensor, operand: Tensor, out: Tensor) -> Tensor:
    """oneDNN takes leading dimensions from strides, and silently computes nothing when that of a size-1
    dimension is not what it expects (pytorch #195066): one row gets plain strides, one column no oneDNN.
    """
    if x.shape[1] == 1:
        return x.int() * operand.int()
    if x.shape[0] == 1:
        x = x.reshape(-1).view(1, -1)
    return torch._int_mm(x, operand, out=out)


def _packed_tiles(codes: Tensor) -> Tensor:
    from bithaul.model import integer  # compiled for machines with AVX2 only

    _require_tiles()
    outputs, width = codes.shape
    columns, steps = integer.panels(outputs, tiles.COLUMNS), integer.panels(width, 4)
    packed = torch.empty((columns, steps, tiles.COLUMNS, 4), dtype=torch.uint8)
    integer.pack_codes(codes.numpy(), packed.numpy())
    return packed


def _tiles(x: Tensor, packed: Tensor, out: Tensor) -> Tensor:
    from bithaul.model import integer

    integer.multiply_codes(x.contiguous().numpy(), packed.numpy(), out.numpy())
    return out


def _packed_words(codes: Tensor) -> Tensor:
    """The codes [N, K] as right operand of d T: columns K, summed over N."""
    from bithaul.model import integer

    _require_tiles()
    outputs, width = codes.shape
    columns, steps = integer.panels(width, tiles.COLUMNS), integer.panels(outputs, 2)
    packed = torch.empty((columns, steps, tiles.COLUMNS), dtype=torch.int32)
    integer.pack_words(codes.numpy(), packed.numpy())
    return packed


def _require_tiles() -> None:
    problem = tiles.missing()
    if problem is not None:
        raise NotImplementedError(problem)


def _prepack(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
    return packed


def _qlinear(x: Tensor, packed: Tensor, zero_point: int) -> Tensor:
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero_point, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def _qlinear_signed(x: Tensor, packed: Tensor, _out: Tensor) -> Tensor:
    """Fast with AMX only; elsewhere a reference loop, which the probe finds out."""
    return _qlinear(x.contiguous(), packed, 0)


def _qlinear_unsigned(x: Tensor, packed: Tensor, _out: Tensor) -> Tensor:
    """u8 activations with zero point 128: the form that is fast and exact on AVX2 too."""
    return _qlinear(x.to(torch.int16).add_(128).to(torch.uint8), packed, 128)


def _bf16_sums(x: Tensor, operand: Tensor, out: Tensor) -> Tensor:
    """Integers up to 256 are exact in bf16 and the sums leave in fp32, so rounding the inputs is free."""
    with matmul_precision("bf16"):
        return torch.mm(x.float(), operand, out=out)


def _fp32(x: Tensor, operand: Tensor, out: Tensor) -> Tensor:
    return torch.mm(x.float(), operand, out=out)  # the process-wide default is full precision


def _transposed_floats(codes: Tensor) -> Tensor:
    return codes.float().t()


FORWARD: dict[str, Kernel] = {
    "int_mm": Kernel(lambda codes: codes.t(), _int_mm, torch.int32),
    "tiles": Kernel(_packed_tiles, _tiles, torch.int32),
    "qlinear": Kernel(_prepack, _qlinear_signed, torch.float32),
    "qlinear_u8": Kernel(_prepack, _qlinear_unsigned, torch.float32),
    "bf16": Kernel(_transposed_floats, _bf16_sums, torch.float32, thread_safe=False),
    "fp32": Kernel(_transposed_floats, _fp32, torch.float32),
}
WORDS = "int16"
BACKWARD: dict[str, torch.dtype] = {  # the most precise first
    "fp32": torch.float32,
    WORDS: torch.float32,  # of the gradients; `wayback` rounds them to 16 bits block by block
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True)
class StepPath:
    """The products of one training step. `name` is `forward+backward`, `reason` one line."""

    forward: str
    backward: str
    reason: str

    @property
    def name(self) -> str:
        return f"{self.forward}+{self.backward}"

    @property
    def kernel(self) -> Kernel:
        return FORWARD[self.forward]

    def product(self, x: Tensor, codes: Tensor) -> Tensor:
        """int8 [M, K] times int8 [N, K] transposed: the exact integer sums [M, N] as int32 or float32."""
        out = torch.empty((x.shape[0], codes.shape[0]), dtype=self.kernel.sums)
        return self.kernel.multiply(x, self.kernel.prepare(codes), out)

    def prepare_backward(self, codes: Tensor) -> Tensor | None:
        """The codes as 16-bit products want them; None where the way back is in floating point."""
        return _packed_words(codes) if self.backward == WORDS else None

    @property
    def gradient_dtype(self) -> torch.dtype:
        return BACKWARD[self.backward]


EXACT_FP32 = StepPath("fp32", "fp32", "fp32 products of integer values, exact everywhere")


def integer_product(x: Tensor, codes: Tensor) -> Tensor:
    """The reference: the same sums in int64."""
    return x.to(torch.int64) @ codes.to(torch.int64).t()


def refusal(forward: str) -> str | None:
    """Why the forward path cannot be used on this machine, or None when it is exact and not a slow loop."""
    problem = unusable(forward)
    if problem is not None or forward == "fp32":  # there is always a way that works
        return problem
    seconds = _forward_seconds(forward, _PROBE)
    if seconds > _PROBE_SECONDS:
        m, k, n = _PROBE
        return f"a slow reference loop ({seconds * 1e3:.0f} ms at {m} x {k} x {n})"
    ratio = _forward_seconds(forward, _SPEED_PROBE) / _forward_seconds("fp32", _SPEED_PROBE)
    return f"a slow reference loop ({ratio:.0f} times the time of fp32)" if ratio > _LOOP_RATIO else None


def _forward_seconds(forward: str, shape: Shape) -> float:
    m, k, n = shape
    kernel, x = FORWARD[forward], torch.ones((m, k), dtype=torch.int8)
    operand = kernel.prepare(torch.ones((n, k), dtype=torch.int8))
    out = torch.empty((m, n), dtype=kernel.sums)
    return best_seconds(lambda: kernel.multiply(x, operand, out))


def unusable(forward: str) -> str | None:
    """Why the forward path gives no result or a wrong one on this machine, or None."""
    m, k, n = _PROBE
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
    codes = torch.randint(-1, 2, (n, k), generator=generator, dtype=torch.int8)
    x[0], x[1], codes[0] = 127, -128, 1
    kernel = FORWARD[forward]
    out = torch.empty((m, n), dtype=kernel.sums)
    try:
        result = kernel.multiply(x, kernel.prepare(codes), out)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return f"not available ({str(error).splitlines()[0][:80]})"
    if not torch.equal(result.to(torch.int64), integer_product(x, codes)):
        return "inexact"
    return None


def backward_refusal(backward: str) -> str | None:
    """Why gradients cannot be multiplied this way on this machine, or None."""
    return backward_unusable(backward) or _slow_backward(backward)


@functools.cache
def backward_unusable(backward: str) -> str | None:
    """Why this way gives no gradients or wrong ones on this machine, or None. Asked once per process."""
    if backward != WORDS:
        return None
    problem = tiles.missing()
    if problem is not None:
        return f"not available ({problem})"
    return None if _words_are_exact() else "inexact"


@functools.cache
def _slow_backward(backward: str) -> str | None:
    if backward in ("fp32", WORDS):
        return None
    seconds = {}
    for name in (backward, "fp32"):
        operand = torch.ones((_PROBE_BACKWARD, _PROBE_BACKWARD), dtype=BACKWARD[name])
        seconds[name] = best_seconds(functools.partial(torch.mm, operand, operand))
    ratio = seconds[backward] / seconds["fp32"]
    return f"a slow loop ({ratio:.0f} times the time of fp32)" if ratio > _PROBE_RATIO else None


def _words_are_exact() -> bool:
    """Both products of 16-bit integers, at a tiny shape, against an integer reference.

    The largest gradient is 2^15 - 1, so the scale is 1 and nothing is rounded.
    """
    from bithaul.model import integer

    m, k, n = _PROBE
    random = np.random.default_rng(0)
    d = random.integers(-32767, 32768, (m, n)).astype(np.float32)
    d[0, 0], d[1, 1] = 32767.0, -32767.0
    codes = random.integers(-1, 2, (n, k)).astype(np.int8)
    x = random.integers(-128, 128, (m, k)).astype(np.int8)
    along = np.empty((integer.panels(m, integer.ROWS), integer.panels(n, 2), integer.ROWS), np.int32)
    across = np.empty((integer.panels(n, integer.ROWS), integer.panels(m, 2), integer.ROWS), np.int32)
    packed = np.empty((integer.panels(k, tiles.COLUMNS), integer.panels(m, 2), tiles.COLUMNS), np.int32)
    scale = np.float32(integer.fixed_point(d, along, across))
    integer.pack_words(x, packed)
    p, dw = np.empty((m, k), np.float32), np.empty((n, k), np.float32)
    integer.multiply_words(along, _packed_words(torch.from_numpy(codes)).numpy(), scale, p)
    integer.add_words(across, packed, np.full(n, scale), True, dw)
    wide = d.astype(np.int64)
    return bool(
        scale == 1.0
        and np.array_equal(p, (wide @ codes).astype(np.float32))
        and np.array_equal(dw, (wide.T @ x).astype(np.float32))
    )


@functools.cache
def default_path() -> StepPath:
    """An exact forward path with fp32 backward, for inference and tests: the first that is not slow here.

    Slow is more than twice the time of the fastest at the shape of a small layer, timed once per process: a
    general library may hold an exact loop for machines it has no instructions for.
    """
    m, k, n = _DEFAULT
    x, codes = torch.ones((m, k), dtype=torch.int8), torch.ones((n, k), dtype=torch.int8)
    seconds = {}
    for name, kernel in FORWARD.items():
        if refusal(name) is None:
            operand, out = kernel.prepare(codes), torch.empty((m, n), dtype=kernel.sums)
            seconds[name] = best_seconds(functools.partial(kernel.multiply, x, operand, out))
    fastest = min(seconds.values())
    forward = next(name for name, taken in seconds.items() if taken <= 2 * fastest)
    return StepPath(forward, "fp32", f"{forward} forward (the first exact path that is fast here)")


@contextmanager
def one_thread() -> Iterator[None]:
    """Products as a step takes them; a library's threads wait for each other, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best_seconds(run: Callable[[], object]) -> float:
    """The shortest of a few runs on one thread after a first one."""
    with one_thread():
        run()
        best = float("inf")
        for _ in range(_TIMING_REPEATS):
            started = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - started)
    return best
