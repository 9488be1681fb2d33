"""Write one piece of a body in a thread while the next one is received."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from starlette.requests import ClientDisconnect

PIECE = 1 << 20


async def pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    """The parts of a body put together to pieces of at least `PIECE` bytes; the last may be shorter.

    Whatever came before the client hung up is given first, then `ClientDisconnect` is raised.
    """
    piece = bytearray()
    broken: ClientDisconnect | None = None
    try:
        async for part in stream:
            piece += part
            if len(piece) >= PIECE:
                yield piece
                piece = bytearray()
    except ClientDisconnect as error:
        broken = error
    if piece:
        yield piece
    if broken is not None:
        raise broken


class Behind:
    """At most one call at a time, in order. A call's error is raised by the next `do`, or at the end.

    `async with`: nothing is running any more when the block is left, however it is left.
    """

    def __init__(self, limiter: CapacityLimiter) -> None:
        self._limiter = limiter
        self._running: asyncio.Task[object] | None = None

    async def do(self, call: Callable[[bytearray], object], piece: bytearray) -> None:
        await self.done()
        self._running = asyncio.create_task(anyio.to_thread.run_sync(call, piece, limiter=self._limiter))

    async def done(self) -> None:
        """Wait for the call that runs."""
        running = self._running
        if running is None:
            return
        try:
            await asyncio.shield(running)
        finally:
            if running.done():
                self._running = None

    async def __aenter__(self) -> Behind:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.done()
            return
        with anyio.CancelScope(shield=True), suppress(Exception):  # the block's own error is told
            await self.done()
