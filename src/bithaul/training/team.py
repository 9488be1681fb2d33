"""Threads that share a batch: each takes some of its examples through the model on its own.

One product split over threads has to wait for the slowest of them some hundred times a step. Examples are
independent, so here each thread runs whole passes over its share, single-threaded inside, and they meet a
few times a step. The shares depend on the number of threads and on nothing else: the same number gives the
same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from bithaul.model.products import one_thread
from bithaul.training.batches import Example

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


def _next(todo: deque[tuple[int, _Part]]) -> tuple[int, _Part] | None:
    """What a thread takes next; `popleft` is atomic, asking for the length before it would not be."""
    try:
        return todo.popleft()
    except IndexError:
        return None


class Team:
    """The calling thread and `threads` - 1 beside it; with one, the caller does the work alone.

    The caller works too: a thread that sleeps until the others are done is woken once more in every phase,
    which costs up to a millisecond on a virtual machine.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        beside = threads - 1
        self._pool = ThreadPoolExecutor(beside, "team", torch.set_num_threads, (1,)) if beside else None

    def each(self, run: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
        """`run` on every part at the same time; results in the order of the parts.

        Raises what a part raised once no other is at work any more; parts not begun by then are left out.
        """
        if self._pool is None or len(parts) == 1:
            return [run(part) for part in parts]
        todo = deque(enumerate(parts))
        results: dict[int, _Result] = {}

        def work() -> None:
            while (taken := _next(todo)) is not None:
                place, part = taken
                results[place] = run(part)

        helpers = [self._pool.submit(work) for _ in range(min(self.threads, len(parts)) - 1)]
        with one_thread():  # operations of this thread start none of their own
            try:
                work()
            except BaseException:
                todo.clear()
                raise
            finally:
                wait(helpers)
        for helper in helpers:
            helper.result()
        return [results[place] for place in range(len(parts))]

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def shares(self, examples: Sequence[Example]) -> list[list[Example]]:
        """At most one share per thread, all of about the same number of tokens and of the same lengths."""
        ordered = sorted(examples, key=len)
        shares = [ordered[start :: self.threads] for start in range(self.threads)]
        return [share for share in shares if share]
