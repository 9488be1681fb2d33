"""Sends an update in chunks that go on where they broke off: the client's side of tus 1.0.0.

The coordinator is believed, not our memory: after anything unexpected it is asked how far the upload is.
Chunks take about ten seconds each, within what proxies let through. The file's bytes never change.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import httpx2

from bithaul.errors import NotFound
from bithaul.exchange.messages import Receipt
from bithaul.worker.link import Later, Refused

PIECE = 1 << 20
SMALLEST, FIRST, LARGEST = 1 << 20, 8 << 20, 32 << 20
CHUNK_SECONDS = 10.0
_VERSION = {"Tus-Resumable": "1.0.0"}
Body = Callable[[], Iterator[bytes]]


class Ask(Protocol):
    """One request with a token: any success, or the project's errors (`Refused` has the status), `Later`."""

    def __call__(
        self, method: str, path: str, headers: Mapping[str, str], body: Body | None
    ) -> httpx2.Response: ...


class ResumableUpload:
    """One update on its way. `go_on` may be called again after every error that is worth repeating."""

    def __init__(
        self,
        ask: Ask,
        file: Path,
        *,
        task: int,
        fence: str,
        moved: Callable[[int], None],
        stopped: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._file, self._moved, self._stopped, self._clock = ask, file, moved, stopped, clock
        self._length = file.stat().st_size
        self._chunk = FIRST
        self._advanced = False
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        about = {"task": str(task), "fence": fence, "sha256": sha256}
        self._metadata = ",".join(f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in about.items())

    def advanced(self) -> bool:
        """Whether bytes have arrived since the last question: the line is bad, not dead."""
        advanced, self._advanced = self._advanced, False
        return advanced

    def go_on(self) -> Receipt:
        """Until the receipt. `stopped` is called between chunks and may raise."""
        while True:
            headers = {**_VERSION, "Upload-Length": str(self._length), "Upload-Metadata": self._metadata}
            answer = self._ask("POST", "/gradient", headers, None)
            if answer.status_code in (200, 422):
                return Receipt.model_validate_json(answer.content)
            if answer.status_code != 201 or not answer.headers.get("Location", "").startswith("/"):
                raise Later(f"HTTP {answer.status_code} without a receipt")  # 202: it is being judged
            try:
                self._send_from(answer.headers["Location"], _offset(answer))
            except NotFound:
                continue  # it ended meanwhile: asked for again, from the start

    def _send_from(self, path: str, offset: int) -> None:
        """All chunks from `offset` on. Raises `NotFound` when the upload is gone."""
        while offset < self._length:
            self._stopped()
            count = min(self._chunk, self._length - offset)
            started = self._clock()
            try:
                offset = self._send_chunk(path, offset, count)
            except Refused as error:
                if error.status in (404, 410):
                    raise NotFound("the upload is gone") from error
                if error.status not in (409, 460):
                    raise
                self._slow_down()
                offset = _offset(self._ask("HEAD", path, _VERSION, None))
            except (Later, httpx2.TransportError):
                self._slow_down()
                raise
            else:
                self._advanced = True
                rate = count / max(self._clock() - started, 1e-3)
                self._chunk = max(SMALLEST, min(LARGEST, int(rate * CHUNK_SECONDS)))

    def _send_chunk(self, path: str, offset: int, count: int) -> int:
        digest = hashlib.sha256()
        for piece in self._pieces(offset, count):
            digest.update(piece)

        def body() -> Iterator[bytes]:
            for piece in self._pieces(offset, count):
                yield piece
                self._moved(len(piece))

        headers = {
            **_VERSION,
            "Upload-Offset": str(offset),
            "Upload-Checksum": f"sha256 {base64.b64encode(digest.digest()).decode()}",
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(count),
        }
        return _offset(self._ask("PATCH", path, headers, body))

    def _pieces(self, offset: int, count: int) -> Iterator[bytes]:
        with self._file.open("rb") as stream:
            stream.seek(offset)
            while count:
                piece = stream.read(min(PIECE, count))
                if not piece:
                    raise Refused(0, f"{self._file} has become shorter.", code="file_changed")
                count -= len(piece)
                yield piece

    def _slow_down(self) -> None:
        self._chunk = max(SMALLEST, self._chunk // 2)


def _offset(answer: httpx2.Response) -> int:
    value = answer.headers.get("Upload-Offset", "")
    if not value.isdigit():
        raise Later("an upload without an offset")
    return int(value)
