"""Compute paths of a CUDA device: which products a step uses there, why they are exact, how one is chosen.

The forward product has integer operands: |X| <= 128 and |T| <= 1 are exact in bf16 (8 bits), every product of
the two is an integer up to 128, and the sums stay below 2^24 for K up to 131,072. So bf16 inputs with sums
added and returned in fp32 give the same integers as int8 with int32 sums, in any order of adding; a sum that
is returned in bf16 would not. Scales are applied outside, in fp32. Each way is probed on the device against
the integer reference before it may be used. Backward rounds the gradient to bf16, once, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from bithaul.errors import InvalidConfig
from bithaul.model import choice
from bithaul.model.products import Shape, StepPath, integer_product

DEVICE_FORWARD = {"bf16": "bf16", "int8": "bf16", "fp32": "fp32"}
"""Ways to multiply forward, with the type of the backward products of each."""

_PROBE: Shape = (32, 4096, 32)  # deep, so that a device that splits K and adds the parts in bf16 shows it
_INT8_ROWS, _INT8_MULTIPLE = 17, 8  # `_int_mm` on CUDA: more than 16 rows, K and N multiples of 8
_TIMING_REPEATS = 5


@dataclass(frozen=True)
class DevicePath(StepPath):
    """The products of a step whose parameters are on `device`: `cuda`, `cuda-int8` or `cuda-fp32`.

    Any torch device will do; on the CPU it computes the same numbers, slowly, for tests.
    """

    device: torch.device

    @classmethod
    def of(cls, device: torch.device, forward: str, *, reason: str = "") -> DevicePath:
        return cls(forward, DEVICE_FORWARD[forward], reason, device)

    @property
    def name(self) -> str:
        return _name(self.device.type, self.forward)

    def product(self, x: Tensor, codes: Tensor) -> Tensor:
        """int8 [M, K] times int8 [N, K] transposed: the exact integer sums [M, N] as int32 or float32."""
        if self.forward == "int8" and _fits_int8(x, codes):
            return torch._int_mm(x, codes.t())
        dtype = torch.float32 if self.forward == "fp32" else torch.bfloat16
        return multiply(x.to(dtype), codes.t().to(dtype))


def device_of(path: object) -> torch.device:
    """Where the parameters of a model on this path are."""
    return path.device if isinstance(path, DevicePath) else torch.device("cpu")


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """[M, K] times [K, N], both of one type, with sums and result in fp32."""
    if left.is_cuda and left.dtype == torch.bfloat16:
        return cast(Tensor, cast(Any, torch.mm)(left, right, out_dtype=torch.float32))  # not in the stubs
    return torch.mm(left.float(), right.float())  # a bf16 value is an fp32 value: the same products


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 products on CUDA without TF32, whatever the process had set; restored after."""
    backend = torch.backends.cuda.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = before


def choose_path(shapes: Sequence[Shape], *, forced: str | None = None) -> StepPath:
    """A path of the CUDA device where there is one, else `choice.choose_path`.

    `forced` names a path of either kind. Raises `UnknownName` for a path that does not exist and
    `InvalidConfig` for one that this machine cannot run exactly, or at all.
    """
    names = {_name("cuda", forward): forward for forward in DEVICE_FORWARD}
    if forced in names:
        return _forced(forced, names[forced])
    if forced is not None or not torch.cuda.is_available():
        return choice.choose_path(shapes, forced=forced)
    device = torch.device("cuda")
    chosen = fastest(shapes, device)
    if isinstance(chosen, DevicePath):
        return chosen
    found = choice.choose_path(shapes)
    return replace(found, reason=f"{found.reason}; the GPU is not used: {chosen}")


def fastest(shapes: Sequence[Shape], device: torch.device) -> DevicePath | str:
    """The path of `device` that takes least time forward and backward, or why it has none."""
    seconds: dict[str, float] = {}
    problems = []
    for forward in DEVICE_FORWARD:
        path = DevicePath.of(device, forward)
        problem = device_refusal(path)
        if problem is None:
            seconds[forward] = sum(_step_seconds(path, shape) for shape in shapes)
        else:
            problems.append(f"{forward} is {problem}")
    if not seconds:
        return "; ".join(problems)
    forward = min(seconds, key=seconds.__getitem__)
    gain = f", {seconds['fp32'] / seconds[forward]:.1f}x fp32" if "fp32" in seconds else ""
    return DevicePath.of(device, forward, reason=_reason(device, forward, gain))


def device_refusal(path: DevicePath) -> str | None:
    """Why the products of `path` cannot be used, or None when they are exact."""
    m, k, n = _PROBE
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
    codes = torch.randint(-1, 2, (n, k), generator=generator, dtype=torch.int8)
    x[0], x[1], codes[0] = 127, -128, 1
    try:
        with full_precision():
            sums = path.product(x.to(path.device), codes.to(path.device)).cpu()
            _backward(path, (m, k, n))
    except (RuntimeError, NotImplementedError) as error:
        return f"not available ({str(error).splitlines()[0][:80]})"
    return None if torch.equal(sums.to(torch.int64), integer_product(x, codes)) else "inexact"


def hardware(path: object) -> tuple[str, int] | None:
    """Name and memory in bytes of the GPU, None on a path of the CPU."""
    device = device_of(path)
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory


def peak_bytes(device: torch.device) -> int | None:
    """Most memory that tensors took on a GPU since this process began; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def synchronize(device: torch.device) -> None:
    """Wait for what was asked of a GPU; on the CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of several runs, each waited for, after one to warm up."""
    times = []
    for _ in range(1 + _TIMING_REPEATS):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return times[1:]


def _name(device: str, forward: str) -> str:
    return device if forward == "bf16" else f"{device}-{forward}"


def _reason(device: torch.device, forward: str, gain: str) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{forward} forward on {name} (exact{gain}), {DEVICE_FORWARD[forward]} backward, eager"


def _forced(name: str, forward: str) -> DevicePath:
    if not torch.cuda.is_available():
        raise InvalidConfig(
            f"The compute path {name!r} cannot be forced on this machine: torch {torch.__version__} sees no "
            "CUDA device; leave the path out, or install the driver and a CUDA build of torch."
        )
    path = DevicePath.of(torch.device("cuda"), forward)
    problem = device_refusal(path)
    if problem is not None:
        raise InvalidConfig(
            f"The compute path {name!r} cannot be forced on this machine: {forward} is {problem} on its GPU."
        )
    return replace(path, reason=_reason(path.device, forward, ", forced"))


def _fits_int8(x: Tensor, codes: Tensor) -> bool:
    (m, k), n = x.shape, codes.shape[0]
    return m >= _INT8_ROWS and k % _INT8_MULTIPLE == 0 and n % _INT8_MULTIPLE == 0


def _backward(path: DevicePath, shape: Shape) -> None:
    m, k, n = shape
    dtype, device = path.gradient_dtype, path.device
    dy = torch.ones(m, n, dtype=dtype, device=device)
    multiply(dy, torch.ones(n, k, dtype=dtype, device=device))
    multiply(dy.t(), torch.ones(m, k, dtype=dtype, device=device))


def _step_seconds(path: DevicePath, shape: Shape) -> float:
    m, k, n = shape
    x = torch.ones(m, k, dtype=torch.int8, device=path.device)
    codes = torch.ones(n, k, dtype=torch.int8, device=path.device)
    with full_precision():
        forward = min(seconds_of(lambda: path.product(x, codes), path.device))
        return forward + min(seconds_of(lambda: _backward(path, shape), path.device))
