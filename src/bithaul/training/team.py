"""Threads that share a batch: each takes some of its examples through the model on its own.

One product split over threads has to wait for the slowest of them some hundred times a step. Examples are
independent, so here each thread runs whole passes over its share, single-threaded inside, and they meet three
times a step. The shares depend on the number of threads and on nothing else: the same number gives the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from bithaul.training.batches import Example

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


class Team:
    """`threads` threads beside the caller's, which waits; with one, the caller does the work itself."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "team", torch.set_num_threads, (1,)) if threads > 1 else None

    def each(self, run: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
        """`run` on every part at the same time; results in the order of the parts."""
        if self._pool is None or len(parts) == 1:
            return [run(part) for part in parts]
        return list(self._pool.map(run, parts))

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def shares(self, examples: Sequence[Example]) -> list[list[Example]]:
        """At most one share per thread, all of about the same number of tokens and of the same lengths."""
        ordered = sorted(examples, key=len)
        shares = [ordered[start :: self.threads] for start in range(self.threads)]
        return [share for share in shares if share]
