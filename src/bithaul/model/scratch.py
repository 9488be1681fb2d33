"""Memory that a step uses again and again.

Writing to memory that has left the caches costs more than most of the arithmetic of a small model, and fresh
memory has. Whatever does not outlive one function of `fused` is therefore taken from here.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}


_buffers = _Buffers()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory of this thread, valid until the same name is asked for again."""
    size = math.prod(shape)
    flat = _buffers.flat.get((name, dtype))
    if flat is None or flat.numel() < size:
        flat = torch.empty(size, dtype=dtype)
        _buffers.flat[name, dtype] = flat
    return flat[:size].view(shape)
