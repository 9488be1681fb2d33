"""Which matrix product a step uses on this machine, and why.

The forward product is int8 times {-1, 0, 1}; every candidate here returns the exact integer sum, so the
choice changes the speed and never a number. Backward products run in bf16 or fp32. A candidate is tried at
a tiny shape against an integer reference before it may be used, then timed at the model's own shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from bithaul.errors import InvalidConfig, UnknownName

Shape = tuple[int, int, int]
"""(M, K, N): rows, inputs, outputs of one product."""

_SUMS_KEPT = 1 << 18  # 1 MiB of sums, half of a usual second-level cache


def product_rows(outputs: int) -> int:
    """Rows of one forward product: few enough for its sums to stay in the cache until they are used."""
    return max(128, min(256, _SUMS_KEPT // outputs))


_PROBE: Shape = (32, 64, 32)
_TIMING_REPEATS = 5
_PROBE_SECONDS = 0.05  # a path slower than this at 32 x 64 x 32 is a reference loop, not a kernel


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


@dataclass(frozen=True)
class Kernel:
    """One way to multiply int8 [M, K] by int8 codes [N, K] transposed, with exact sums.

    `prepare` turns the codes into the kernel's own operand, once per optimizer step; `product` takes rows,
    that operand and, if there is one, memory for the result, and gives [M, N] of type `sums`.
    """

    prepare: Callable[[Tensor], Tensor]
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    sums: torch.dtype
    thread_safe: bool = True  # False: it flips the process-wide precision, so one thread at a time

    def multiply(self, x: Tensor, operand: Tensor, out: Tensor | None = None) -> Tensor:
        """int8 [M, K] times the prepared codes: [M, N], in `out` [M, N] where the kernel can."""
        return self.product(x, operand, out)


def _int_mm(x: Tensor, operand: Tensor, out: Tensor | None = None) -> Tensor:
    """oneDNN takes leading dimensions from strides, and silently computes nothing when that of a size-1
    dimension is not what it expects (pytorch #195066): one row gets plain strides, one column no oneDNN.
    """
    if x.shape[1] == 1:
        return x.int() * operand.int()
    if x.shape[0] == 1:
        x = x.reshape(-1).view(1, -1)
    return torch._int_mm(x, operand) if out is None else torch._int_mm(x, operand, out=out)


def _prepack(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
    return packed


def _qlinear(x: Tensor, packed: Tensor, zero_point: int) -> Tensor:
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero_point, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def _qlinear_signed(x: Tensor, packed: Tensor, _out: Tensor | None = None) -> Tensor:
    """Fast with AMX only; elsewhere a reference loop, which the probe finds out."""
    return _qlinear(x.contiguous(), packed, 0)


def _qlinear_unsigned(x: Tensor, packed: Tensor, _out: Tensor | None = None) -> Tensor:
    """u8 activations with zero point 128: the form that is fast and exact on AVX2 too."""
    return _qlinear(x.to(torch.int16).add_(128).to(torch.uint8), packed, 128)


def _bf16_sums(x: Tensor, operand: Tensor, out: Tensor | None = None) -> Tensor:
    """Integers up to 256 are exact in bf16 and the sums leave in fp32, so rounding the inputs is free."""
    with matmul_precision("bf16"):
        return torch.mm(x.float(), operand, out=out)


def _fp32(x: Tensor, operand: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.mm(x.float(), operand, out=out)  # the process-wide default is full precision


def _transposed_floats(codes: Tensor) -> Tensor:
    return codes.float().t()


FORWARD: dict[str, Kernel] = {
    "int_mm": Kernel(lambda codes: codes.t(), _int_mm, torch.int32),
    "qlinear": Kernel(_prepack, _qlinear_signed, torch.float32),
    "qlinear_u8": Kernel(_prepack, _qlinear_unsigned, torch.float32),
    "bf16": Kernel(_transposed_floats, _bf16_sums, torch.float32, thread_safe=False),
    "fp32": Kernel(_transposed_floats, _fp32, torch.float32),
}
BACKWARD: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


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
        return self.kernel.multiply(x, self.kernel.prepare(codes))

    @property
    def gradient_dtype(self) -> torch.dtype:
        return BACKWARD[self.backward]


EXACT_FP32 = StepPath("fp32", "fp32", "fp32 products of integer values, exact everywhere")


def integer_product(x: Tensor, codes: Tensor) -> Tensor:
    """The reference: the same sums in int64."""
    return x.to(torch.int64) @ codes.to(torch.int64).t()


def refusal(forward: str) -> str | None:
    """Why the forward path cannot be used on this machine, or None when it is exact and not a slow loop."""
    m, k, n = _PROBE
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
    codes = torch.randint(-1, 2, (n, k), generator=generator, dtype=torch.int8)
    x[0], x[1], codes[0] = 127, -128, 1
    kernel = FORWARD[forward]
    try:
        operand = kernel.prepare(codes)
        result = kernel.multiply(x, operand)
        seconds = _best_seconds(lambda: kernel.multiply(x, operand))
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return f"not available ({str(error).splitlines()[0][:80]})"
    if not torch.equal(result.to(torch.int64), integer_product(x, codes)):
        return "inexact"
    if seconds > _PROBE_SECONDS and forward != "fp32":  # there is always a way that works
        return f"a slow reference loop ({seconds * 1e3:.0f} ms at {m} x {k} x {n})"
    return None


def choose_path(shapes: Sequence[Shape], *, forced: str | None = None) -> StepPath:
    """The fastest exact path for products of these shapes on this machine, at the current thread count.

    `forced` names a path such as `int_mm+bf16` and skips the timing. Raises `UnknownName` for a path that
    does not exist and `InvalidConfig` for one that this machine cannot run exactly.
    """
    if forced is not None:
        return _forced(forced)
    usable = [name for name in FORWARD if refusal(name) is None]
    forward_ms = {name: sum(_forward_seconds(name, shape) for shape in shapes) * 1e3 for name in usable}
    backward_ms = {name: sum(_backward_seconds(name, shape) for shape in shapes) * 1e3 for name in BACKWARD}
    forward = min(forward_ms, key=forward_ms.__getitem__)
    backward = min(backward_ms, key=backward_ms.__getitem__)
    reason = (
        f"{forward} forward ({_instructions()}, exact, "
        f"{forward_ms['fp32'] / forward_ms[forward]:.1f}x fp32), "
        f"{backward} backward ({backward_ms['fp32'] / backward_ms[backward]:.1f}x fp32), eager"
    )
    return StepPath(forward, backward, reason)


def default_path() -> StepPath:
    """The first exact forward path of this machine with fp32 backward, untimed: for inference and tests."""
    forward = next(name for name in FORWARD if refusal(name) is None)
    return StepPath(forward, "fp32", f"{forward} forward (the first exact path)")


def _forced(name: str) -> StepPath:
    forward, _, backward = name.partition("+")
    if forward not in FORWARD or backward not in BACKWARD:
        known = ", ".join(f"{f}+{b}" for f in FORWARD for b in BACKWARD)
        on_gpu = "on a GPU cuda, cuda-int8, cuda-fp32"
        raise UnknownName(f"There is no compute path {name!r}; the paths are {known}, and {on_gpu}.")
    problem = refusal(forward)
    if problem is not None:
        raise InvalidConfig(
            f"The compute path {name!r} cannot be forced on this machine: {forward} is {problem}."
        )
    return StepPath(forward, backward, f"{name} (forced)")


def _best_seconds(run: Callable[[], object]) -> float:
    run()
    best = float("inf")
    for _ in range(_TIMING_REPEATS):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def _forward_seconds(name: str, shape: Shape) -> float:
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

    return _best_seconds(run)


def _backward_seconds(name: str, shape: Shape) -> float:
    m, k, n = shape
    dtype = BACKWARD[name]
    dy, x, codes = torch.ones(m, n, dtype=dtype), torch.ones(m, k, dtype=dtype), torch.ones(n, k, dtype=dtype)
    return _best_seconds(lambda: (dy @ codes, dy.t() @ x))


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
