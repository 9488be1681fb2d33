"""The rest of a file over several connections at once, for lines on which a single one is slow.

TCP gives a connection that loses one segment in a hundred a sixth of a 10 Mbit/s line; four get four times
that. A connection fetches one segment after the other; what is complete up to the first gap is kept when the
line breaks.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import httpx2

from bithaul.errors import BithaulError, CorruptFile, Unavailable
from bithaul.worker.link import Link, Stopped
from bithaul.worker.stop import Stop

CONNECTIONS = 4
SEGMENT = 1 << 19  # bytes: a delta of 3 MB has enough of them for all connections
WORTH = 4 * SEGMENT  # bytes left
SLOW_SECONDS, PATIENCE_SECONDS = 10.0, 2.0


def worth_it(*, left: int, got: int, seconds: float) -> bool:
    """After `got` bytes in `seconds` over one connection: whether the `left` ones would take long."""
    return seconds >= PATIENCE_SECONDS and left >= WORTH and left * seconds > SLOW_SECONDS * got


class Segments:
    """Bytes `start` to `size` of `path` into `file`, which grows to them. `run` once."""

    def __init__(
        self,
        link: Link,
        path: str,
        file: BinaryIO,
        *,
        start: int,
        size: int,
        headers: Mapping[str, str],
        stop: Stop,
        moved: Callable[[int], None],
    ) -> None:
        self._link, self._path, self._file, self._headers = link, path, file, dict(headers)
        self._stop, self._moved = stop, moved
        self._size = size
        self._todo = deque((at, min(at + SEGMENT, size)) for at in range(start, size, SEGMENT))
        self._missing = {at for at, _ in self._todo}
        self._lock = threading.Lock()
        self._broken: BaseException | None = None

    def run(self) -> None:
        """Raises what broke the first connection; the file then ends before the first gap."""
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="segment") as pool:
            for done in [pool.submit(self._connection) for _ in range(CONNECTIONS)]:
                done.result()
        if self._missing:
            self._file.truncate(min(self._missing))
        self._file.flush()
        if self._broken is not None:
            raise self._broken

    def _connection(self) -> None:
        try:
            while (segment := self._next()) is not None:
                self._put(segment[0], self._fetch(*segment))
        except (BithaulError, httpx2.TransportError, OSError, Stopped) as error:
            with self._lock:
                self._broken = self._broken or error

    def _next(self) -> tuple[int, int] | None:
        with self._lock:
            return self._todo.popleft() if self._todo and self._broken is None else None

    def _fetch(self, start: int, stop: int) -> bytes:
        data = bytearray()
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
        with self._link.download(self._path, headers) as response:
            wanted = f"bytes {start}-{stop - 1}/{self._size}"
            if response.status_code != 206 or response.headers.get("Content-Range") != wanted:
                raise CorruptFile(f"{self._path} is not what it was, or not sent in parts.")
            for piece in response.iter_raw():
                data += piece
                self._moved(len(piece))
                if len(data) > stop - start:
                    raise CorruptFile(f"{self._path} sent more than was asked for.")
                if self._stop.requested:
                    raise Stopped(f"{self._path} was not complete")
        if len(data) < stop - start:
            raise Unavailable(f"{self._path} ended {stop - start - len(data)} bytes early.")
        return bytes(data)

    def _put(self, start: int, data: bytes) -> None:
        with self._lock:
            self._file.seek(start, os.SEEK_SET)
            self._file.write(data)
            self._missing.discard(start)
