"""Memory that a step uses again and again.

Writing to memory that has left the caches costs more than most of the arithmetic of a small model, and fresh
memory has. Whatever does not outlive one function of `fused` is therefore taken from here. `release` gives it
back to the system.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_MOST_VIEWS = 4096  # of a thread; batches come in many shapes over the days


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[tuple[str, torch.dtype, tuple[int, ...]], Tensor] = {}


_buffers = _Buffers()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory of this thread, valid until the same name is asked for again."""
    known = _buffers.views.get((name, dtype, shape))
    if known is not None:
        return known
    size = math.prod(shape)
    flat = _buffers.flat.get((name, dtype))
    if flat is None or flat.numel() < size:
        with torch.inference_mode(False):  # memory made in that mode could not be written after it
            flat = torch.empty(size, dtype=dtype)
        _buffers.flat[name, dtype] = flat
        for key in [key for key in _buffers.views if key[:2] == (name, dtype)]:
            del _buffers.views[key]
    if len(_buffers.views) >= _MOST_VIEWS:
        _buffers.views.clear()
    view = flat[:size].view(shape)
    _buffers.views[name, dtype, shape] = view
    return view


def release() -> None:
    """Forget all memory of this thread; views that are still held stay valid."""
    _buffers.flat.clear()
    _buffers.views.clear()
