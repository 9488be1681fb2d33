"""uvicorn's httptools protocol with our bounds: connections, header size and time, body speed, idle, reading.

Leans on uvicorn's internals, so uvicorn is pinned exactly and SEC-43 is a fast test; h11 is the way back.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.utils import get_remote_addr

from bithaul.coordinator.connections import PeerConnections

if sys.platform == "linux":
    import fcntl
    import termios

MAX_HEADER_BYTES = 32 * 1024
MAX_DISCARDED_BYTES = 64 * 1024 * 1024


class HardenedHttpToolsProtocol(HttpToolsProtocol):
    """431 above 32 KiB of headers; closed when headers take over 10 s or a body is slower than 1 KiB/s.

    One timer: of headers, of a body, or of a connection that rests between two requests, 75 s at most:
    a worker whose heartbeats are half a minute apart keeps its own.
    uvicorn's own for the last is not used: it forgets a connection whose request was answered before its body
    had come.

    Fields after a body (trailers) are read by nobody. uvicorn adds them to the headers, where they would be
    believed like those that a proxy has let through. What is neither header nor body has a header's bound.

    And one while bytes wait for a peer to read them: aborted when he takes none, or nearly none, in a minute.

    A connection above what its address may have, or the last that there is, is told 503 and closed before
    anything is read. The last: uvicorn answers 503 to all, also to who has long been connected, when it is
    taken.
    """

    peers: ClassVar[PeerConnections | None] = None  # None: as many as they like

    header_seconds: ClassVar[float] = 10.0
    body_seconds: ClassVar[float] = 30.0
    body_floor: ClassVar[int] = 1024  # bytes per second, averaged over `body_seconds`
    idle_seconds: ClassVar[float] = 75.0
    read_seconds: ClassVar[float] = 60.0
    read_floor: ClassVar[int] = 16 * 1024  # bytes that a peer takes in `read_seconds`, or all there are

    _address: str | None = None  # while it is counted
    _in_headers = True
    _resting = False
    _header_bytes = 0
    _body_bytes = 0
    _discarded = 0
    _beside = 0  # bytes since the last of the body: trailers, or what frames its chunks
    _timer: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None
    _unread = 0  # when `_reader` was armed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        address = (get_remote_addr(transport) or ("", 0))[0]
        if self._is_full() or not (self.peers is None or self.peers.enter(address)):
            self.transport = transport
            self._refuse(503, b"There are too many connections; try again later.", b"retry-after: 5\r\n")
            return
        self._address = address
        super().connection_made(transport)
        self._arm(self.header_seconds, self._headers_late)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._address is not None and self.peers is not None:
            self.peers.leave(self._address)
        self._disarm()
        self._has_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._has_read()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
            if self._timer is None or self._resting:
                self._arm(self.header_seconds, self._headers_late)
        self._beside += len(data)
        super().data_received(data)
        if not self._in_headers and self._beside > MAX_HEADER_BYTES:
            self.transport.abort()
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.transport.get_write_buffer_size() == 0:
            self._has_read()
        self._in_headers = False
        self._beside = 0
        self._disarm()
        if sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url) > MAX_HEADER_BYTES:
            self._refuse_headers()
            return
        super().on_headers_complete()
        self._body_bytes = 0
        self._discarded = 0
        self._arm(self.body_seconds, self._body_late)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._beside = 0
        if self.cycle is None:
            return
        if self.cycle.response_complete:  # answered early: read on, so that the peer gets to see the answer
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED_BYTES:
                self.transport.abort()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        self._in_headers = True
        self._header_bytes = 0
        if self.cycle is not None:
            super().on_message_complete()
        self._rest()

    def on_response_complete(self) -> None:
        self._watch_reader()
        super().on_response_complete()
        self._unset_keepalive_if_required()
        self._rest()

    def _is_full(self) -> bool:
        return self.limit_concurrency is not None and len(self.connections) + 1 >= self.limit_concurrency

    def _refuse_headers(self) -> None:
        self._refuse(431, b"The request's headers are too large.")

    def _refuse(self, status: int, text: bytes, headers: bytes = b"") -> None:
        head = b"content-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(text)
        self.transport.write(STATUS_LINE[status] + headers + head + text)
        self.transport.close()

    def _headers_late(self) -> None:
        self._timer = None
        if not self.flow.read_paused:
            self.transport.close()

    def _rest(self) -> None:
        """Begins when the newest request has come whole and is answered, whichever is last."""
        answered = self.cycle is not None and self.cycle.response_complete
        if answered and self._in_headers and self._timer is None and not self.transport.is_closing():
            self._arm(self.idle_seconds, self._rested)
            self._resting = True

    def _rested(self) -> None:
        self._timer = None
        self.transport.close()

    def _body_late(self) -> None:
        """A body that we wait for must have brought its floor; one that we do not read is not late."""
        self._timer = None
        paused = self.flow is not None and self.flow.read_paused
        if not paused and self._body_bytes < self.body_floor * self.body_seconds:
            self.transport.abort()
            return
        self._body_bytes = 0
        self._arm(self.body_seconds, self._body_late)

    def _watch_reader(self) -> None:
        if self._reader is None and self.transport.get_write_buffer_size() > 0:
            self._unread = self._count_unread()
            self._reader = self.loop.call_later(self.read_seconds, self._judge_reader)

    def _has_read(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _judge_reader(self) -> None:
        """Also of a connection that is closing: it waits for the last byte to be taken."""
        self._reader = None
        if self.transport.get_write_buffer_size() and self._count_unread() > self._unread - self.read_floor:
            self.transport.abort()
            return
        self._watch_reader()

    def _count_unread(self) -> int:
        """Ours and, where the system tells, its own: it takes more of ours only in large pieces."""
        count = self.transport.get_write_buffer_size()
        line = self.transport.get_extra_info("socket")
        if sys.platform == "linux" and line is not None and line.fileno() >= 0:
            count += int.from_bytes(fcntl.ioctl(line.fileno(), termios.TIOCOUTQ, b"\0" * 4), sys.byteorder)
        return count

    def _arm(self, seconds: float, action: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._resting = False
