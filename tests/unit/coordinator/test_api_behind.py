"""Receiving ahead of the disk: order, errors, and what is running when the block is left."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio import CapacityLimiter
from starlette.requests import ClientDisconnect

from bithaul.coordinator.api import behind as module
from bithaul.coordinator.api.behind import Behind, pieces

RunApart = Callable[[Coroutine[Any, Any, Any]], Any]
InBlock = Callable[[Callable[[Behind], Any]], None]


async def body(*parts: bytes, cut: bool = False) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if cut:
        raise ClientDisconnect


def test_pieces_hold_every_byte_in_order(run_apart: RunApart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 4)

    async def run() -> list[bytes]:
        return [bytes(piece) async for piece in pieces(body(b"ab", b"cd", b"efghij", b"k"))]

    assert run_apart(run()) == [b"abcd", b"efghij", b"k"]


def test_what_came_before_a_cut_is_given_before_the_cut_is_told(
    run_apart: RunApart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 4)
    seen: list[bytes] = []

    async def run() -> None:
        async for piece in pieces(body(b"abcd", b"ef", cut=True)):
            seen.append(bytes(piece))

    with pytest.raises(ClientDisconnect):
        run_apart(run())
    assert seen == [b"abcd", b"ef"]


@pytest.fixture
def behind(run_apart: RunApart) -> InBlock:
    def go(block: Callable[[Behind], Any]) -> None:
        async def run() -> None:
            async with Behind(CapacityLimiter(2)) as it:
                await block(it)

        run_apart(run())

    return go


def test_writes_stay_in_order_and_are_done_at_the_end(behind: InBlock) -> None:
    """Catches two at a time, which would mix the bytes, and a file that is closed under a write."""
    done: list[bytes] = []
    running: list[int] = [0]
    received = threading.Event()

    def write(piece: bytearray) -> None:
        running[0] += 1
        assert running[0] == 1
        assert received.wait(10), "the next piece is received meanwhile"
        time.sleep(0.02)
        done.append(bytes(piece))
        running[0] -= 1

    async def block(it: Behind) -> None:
        await it.do(write, bytearray(b"0"))
        received.set()
        for i in (1, 2, 3):
            await it.do(write, bytearray(b"%d" % i))

    behind(block)
    assert done == [b"0", b"1", b"2", b"3"]


def test_an_error_of_the_last_write_is_raised(behind: InBlock) -> None:
    def full(piece: bytearray) -> None:
        raise OSError("disk full")

    async def block(it: Behind) -> None:
        await it.do(full, bytearray(b"x"))

    with pytest.raises(OSError, match="disk full"):
        behind(block)


def test_the_error_of_the_block_is_told_and_nothing_runs_on(behind: InBlock) -> None:
    ended = threading.Event()

    def slow_and_failing(piece: bytearray) -> None:
        time.sleep(0.05)
        ended.set()
        raise OSError("disk full")

    async def block(it: Behind) -> None:
        await it.do(slow_and_failing, bytearray(b"x"))
        raise ClientDisconnect

    with pytest.raises(ClientDisconnect):
        behind(block)
    assert ended.is_set()


def test_whoever_is_cancelled_waits_for_its_write(run_apart: RunApart) -> None:
    ended = threading.Event()

    def slow(piece: bytearray) -> None:
        time.sleep(0.1)
        ended.set()

    async def run() -> None:
        async def block() -> None:
            async with Behind(CapacityLimiter(1)) as it:
                await it.do(slow, bytearray(b"x"))
                await it.do(slow, bytearray(b"y"))

        task = asyncio.create_task(block())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    run_apart(run())


def test_whoever_runs_out_of_time_waits_for_its_write(run_apart: RunApart) -> None:
    """A limit of anyio cancels again at every wait, also while the block is left."""
    ended = threading.Event()

    def slow(piece: bytearray) -> None:
        time.sleep(0.1)
        ended.set()

    async def run() -> None:
        with anyio.move_on_after(0.02) as limit:
            async with Behind(CapacityLimiter(1)) as it:
                await it.do(slow, bytearray(b"x"))
                await it.do(slow, bytearray(b"y"))
        assert limit.cancelled_caught
        assert ended.is_set()

    run_apart(run())
