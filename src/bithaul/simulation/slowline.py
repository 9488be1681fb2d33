"""A home line between real processes: every byte passes at its rate, late by its latency, and it can be cut.

For machines whose kernel has no netem. It forwards TCP connections. Each direction has one rate for all
connections together. A lost segment costs what it costs TCP: it and what comes after it arrive one round
trip later, and no connection gets more than random losses let it have, `MSS / round trip * sqrt(1.5 / loss)`
bytes per second (Mathis and others, 1997). What it does not show: the queue of a router that others fill,
reordering, losses of handshakes, changing rates.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")

MSS = 1448  # bytes of a segment
PIECE = 16 * 1024


@dataclass(frozen=True)
class Profile:
    """Bytes per second up (to the coordinator) and down, seconds one way, share of segments lost."""

    up: float
    down: float
    latency: float
    loss: float = 0.0

    @property
    def round_trip(self) -> float:
        return 2 * self.latency

    @property
    def most(self) -> float:
        """Bytes per second of a single connection."""
        if not self.loss or not self.latency:
            return math.inf
        return MSS / self.round_trip * math.sqrt(1.5 / self.loss)


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "adsl": Profile(up=1e6 / 8, down=10e6 / 8, latency=0.04, loss=0.01),
        "adsl-clean": Profile(up=1e6 / 8, down=10e6 / 8, latency=0.04),
        "fast": Profile(up=1e9 / 8, down=1e9 / 8, latency=0.0),
    }
)


class _Way:
    """One direction, shared by all connections; counts what came out of it."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free_at, self.bytes = rate, 0.0, 0


class SlowLine:
    """Forwards a port of this machine to `to` until closed. While `refusing`, nobody gets through."""

    def __init__(
        self,
        to: tuple[str, int],
        profile: Profile,
        *,
        seed: int = 0,
    ) -> None:
        self._to, self._profile = to, profile
        self._random = random.Random(seed)  # noqa: S311 - losses, not secrets
        self.up, self.down = _Way(profile.up), _Way(profile.down)
        self.refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._ask(self._open())
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Both ends of every connection are reset, as when a router starts anew."""
        self._ask(self._cut())

    def close(self) -> None:
        self.refusing = True
        self._server.close()
        self.cut()
        self._ask(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _ask(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _open(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=PIECE)

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _settle(self) -> None:
        """Nothing is left running."""
        await self._server.wait_closed()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        if self.refusing:
            back.transport.abort()
            return
        self._writers.add(back)
        try:
            await asyncio.sleep(self._profile.round_trip)  # of the handshake
            far, there = await asyncio.open_connection(*self._to, limit=PIECE)
        except OSError:
            self._writers.discard(back)
            back.transport.abort()
            return
        self._writers.add(there)
        try:
            await asyncio.gather(self._pass(near, there, self.up), self._pass(far, back, self.down))
        finally:
            for writer in (back, there):
                self._writers.discard(writer)
                writer.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: _Way) -> None:
        """One direction of one connection, until its end."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.create_task(self._deliver(under_way, sink, way))
        own_free = arrives = 0.0
        with suppress(OSError):
            while piece := await source.read(PIECE):
                now = self._loop.time()
                way.free_at = max(now, way.free_at) + len(piece) / way.rate
                own_free = max(now, own_free) + len(piece) / self._profile.most
                leaves = max(way.free_at, own_free)
                lost = any(self._random.random() < self._profile.loss for _ in range(-(-len(piece) // MSS)))
                late = self._profile.latency + (self._profile.round_trip if lost else 0.0)
                arrives = max(arrives, leaves + late)  # in order: what is behind a lost one waits
                under_way.put_nowait((arrives, piece))
                await asyncio.sleep(leaves - self._loop.time())
        under_way.put_nowait((arrives, b""))
        await delivery

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter, way: _Way
    ) -> None:
        with suppress(OSError):
            while True:
                arrives, piece = await under_way.get()
                await asyncio.sleep(arrives - self._loop.time())
                if not piece:
                    sink.write_eof()
                    return
                sink.write(piece)
                way.bytes += len(piece)
                await sink.drain()
