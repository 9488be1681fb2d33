"""What hand-written autograd functions share: being applied, and the memory of tensors as arrays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function


def differentiable(function: type[Function], *arguments: object) -> Tensor:
    """`function.apply(*arguments)`, typed; torch leaves the call untyped."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]  # untyped in torch
    return result


def array_of(tensor: Tensor) -> Any:
    """The memory of a tensor as a numpy array; bf16 as its bits, uint16."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
