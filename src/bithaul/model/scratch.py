"""Memory that a step uses again and again.

Writing to memory that has left the caches costs more than most of the arithmetic of a small model, and fresh
memory has; memory that went back to the system has to be mapped and cleared anew besides. What does not
outlive one function of `fused` is taken by name (`scratch`), and what is kept for the way back by size
(`lasting`). `release` gives all of it back to the system.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MOST_VIEWS = 4096  # of a thread; batches come in many shapes over the days
_LINE = 64  # bytes of a cache line, where products want their operands to begin
_LEAST = 1 << 16  # bytes; less than this the library keeps by itself
_UNUSED = 4096  # requests of a thread, some thirty steps: what is free and none of them took goes back


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


@dataclass
class _Block:
    """Memory that tensors may stand in; it is free when nothing else refers to it."""

    memory: npt.NDArray[np.uint8]
    used: int  # the request that took it last

    def references(self) -> int:
        return sys.getrefcount(self.memory)


_FREE = _Block(np.empty(0, np.uint8), 0).references()


class _Pool(threading.local):
    """A thread's blocks, the smallest first; a tensor of them may be let go by any thread."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.requests = itertools.count()

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """The smallest free block of `size` to twice as many bytes: batches differ, and share it so."""
        request = next(self.requests)
        if request % _UNUSED == 0:
            self._give_back(before=request - _UNUSED)
        for at in range(bisect_left(self.blocks, size, key=_size), len(self.blocks)):
            block = self.blocks[at]
            if _size(block) > 2 * size:
                break
            if block.references() == _FREE:
                block.used = request
                return block.memory
        made = _Block(np.empty(size + size // 16 + _LINE, np.uint8), request)
        insort(self.blocks, made, key=_size)
        return made.memory

    def _give_back(self, before: int) -> None:
        self.blocks = [b for b in self.blocks if b.used >= before or b.references() != _FREE]


def _size(block: _Block) -> int:
    """Bytes that fit in wherever the first cache line begins."""
    return len(block.memory) - _LINE


_pool = _Pool()


def lasting(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory that is the caller's while this tensor, or anything made of it, is referred to."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LEAST:
        return torch.empty(shape, dtype=dtype)
    memory = _pool.take(size)
    start = -memory.ctypes.data % _LINE
    part: Any = memory[start : start + size]
    return torch.from_numpy(part).view(dtype).view(shape)


def release() -> None:
    """Forget all memory of this thread; what is held stays valid."""
    _buffers.flat.clear()
    _buffers.views.clear()
    _pool.blocks.clear()
