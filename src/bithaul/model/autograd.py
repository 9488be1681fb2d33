"""The one place where a hand-written autograd function is applied; torch leaves the call untyped."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.function import Function


def differentiable(function: type[Function], *arguments: object) -> Tensor:
    """`function.apply(*arguments)`, typed."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]  # untyped in torch
    return result
