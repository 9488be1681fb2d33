"""The matrix products of a step alone on a device, for the roofline of `bench`, and its reference step."""

from __future__ import annotations

import statistics

import torch

from bithaul.errors import Unavailable
from bithaul.model.device import (
    DEVICE_FORWARD,
    DevicePath,
    device_refusal,
    full_precision,
    multiply,
    seconds_of,
)
from bithaul.model.products import Shape, StepPath
from bithaul.training.ceilings import Product


def reference_path(path: StepPath) -> StepPath | str:
    """Where fp32 fake quantisation runs for a comparison with `path`: on the same device, in fp32."""
    return DevicePath.of(path.device, "fp32") if isinstance(path, DevicePath) else "fp32+fp32"


def device_product(product: Product, device: torch.device) -> float:
    """Seconds of one product on the fastest exact way of the device for its kind; median of several."""
    m, k, n = product.rows, product.inputs, product.outputs
    if product.kind == "attention":
        left, right = torch.ones(m, k, n, device=device), torch.ones(m, n, k, device=device)
        with full_precision():
            return statistics.median(seconds_of(lambda: torch.bmm(left, right), device))
    shapes: dict[str, Shape] = {"input_gradient": (m, n, k), "weight_gradient": (n, m, k)}
    shape, forward_codes = shapes.get(product.kind, (m, k, n)), product.kind == "forward"
    found = []
    for forward in DEVICE_FORWARD:
        path = DevicePath.of(device, forward)
        if device_refusal(path) is None:
            found.append(_product(path, shape, codes=forward_codes))
    if not found:
        raise Unavailable(f"No product is exact on {device}; look at the driver and try again.")
    return min(found)


def _product(path: DevicePath, shape: Shape, *, codes: bool) -> float:
    m, k, n = shape
    dtype = torch.int8 if codes else path.gradient_dtype
    x = torch.ones(m, k, dtype=dtype, device=path.device)
    other = torch.ones(n, k, dtype=dtype, device=path.device)

    def run() -> object:
        return path.product(x, other) if codes else multiply(x, other.t())

    with full_precision():
        return statistics.median(seconds_of(run, path.device))
