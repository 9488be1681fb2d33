"""uvicorn's httptools protocol with our bounds: header size, header time, body speed, idle time.

Leans on uvicorn's internals, so uvicorn is pinned exactly and SEC-43 is a fast test; h11 is the way back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEADER_BYTES = 32 * 1024
MAX_DISCARDED_BYTES = 64 * 1024 * 1024


class HardenedHttpToolsProtocol(HttpToolsProtocol):
    """431 above 32 KiB of headers; closed when headers take over 10 s or a body is slower than 1 KiB/s.

    One timer: of headers, of a body, or of a connection that rests between two requests, 75 s at most:
    a worker whose heartbeats are half a minute apart keeps its own.
    uvicorn's own for the last is not used: it forgets a connection whose request was answered before its body
    had come.
    """

    header_seconds: ClassVar[float] = 10.0
    body_seconds: ClassVar[float] = 30.0
    body_floor: ClassVar[int] = 1024  # bytes per second, averaged over `body_seconds`
    idle_seconds: ClassVar[float] = 75.0

    _in_headers = True
    _resting = False
    _header_bytes = 0
    _body_bytes = 0
    _discarded = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._arm(self.header_seconds, self._headers_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
            if self._timer is None or self._resting:
                self._arm(self.header_seconds, self._headers_late)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        self._in_headers = False
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
        super().on_response_complete()
        self._unset_keepalive_if_required()
        self._rest()

    def _refuse_headers(self) -> None:
        text = b"The request's headers are too large."
        head = (
            STATUS_LINE[431] + b"content-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        )
        self.transport.write(head % len(text) + text)
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

    def _arm(self, seconds: float, action: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._resting = False
