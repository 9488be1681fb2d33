"""The threads in which workers' requests are decided.

Few, because all of them wait for the one writer and for the interpreter: with forty, a thousand workers
that report within seconds spend more time on taking turns than on being answered (docs/lab/0017). Pages,
files and sign-ins have the default threads, so neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

THREADS = 4

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Desk:
    """One per application."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(THREADS)

    async def run(self, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """What `call` returns or raises. Whoever hangs up meanwhile does not stop it."""
        return await anyio.to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self._limiter)
