"""Lines from a stream, in batches as large as what has already arrived and never waiting for more.

A slow stream (a person, a program that waits for each answer) gives one line at a time at once; a fast one
gives full batches. Memory is bounded: by the batches waiting and by the length of one line.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

MAX_LINE_BYTES = 1 << 20
_WAITING = 1024


def line_batches(
    read: Callable[[], bytes], *, batch: int = 64, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[list[str]]:
    r"""Batches of 1 to `batch` lines without their line end (`\n` or `\r\n`), until `read` returns `b""`.

    `read` blocks until there are some bytes. Bytes that are no UTF-8 become U+FFFD. Of a longer line the
    first `max_line_bytes` are kept. What `read` raises is raised here.
    """
    waiting: queue.Queue[str | OSError | None] = queue.Queue(maxsize=_WAITING)

    def fill() -> None:
        try:
            for line in _lines(read, max_line_bytes):
                waiting.put(line)
        except OSError as error:
            waiting.put(error)
        waiting.put(None)

    threading.Thread(target=fill, name="lines", daemon=True).start()
    ended = False
    while not ended:
        arrived = [waiting.get()]
        while arrived[-1] is not None and len(arrived) < batch and not waiting.empty():
            arrived.append(waiting.get())
        ended = arrived[-1] is None
        lines = [line for line in arrived if isinstance(line, str)]
        if lines:
            yield lines
        for item in arrived:
            if isinstance(item, OSError):
                raise item


def _lines(read: Callable[[], bytes], max_line_bytes: int) -> Iterator[str]:
    line = bytearray()
    started = False  # something of the current line has been seen, so it counts even when it is empty
    while chunk := read():
        for part in _split(chunk):
            ended = part.endswith(b"\n")
            line += part[: max_line_bytes + 2 - len(line)]
            started = True
            if ended:
                yield _text(line, max_line_bytes)
                line.clear()
                started = False
    if started:
        yield _text(line, max_line_bytes)


def _split(chunk: bytes) -> list[bytes]:
    r"""`chunk` after each `\n`, and at no other character."""
    parts = chunk.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _text(line: bytearray, max_line_bytes: int) -> str:
    bare = bytes(line).removesuffix(b"\n").removesuffix(b"\r")
    return bare[:max_line_bytes].decode("utf-8", "replace")
