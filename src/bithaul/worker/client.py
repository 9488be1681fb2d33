"""The worker's side of the coordinator's REST API: one method a route, with tokens and retries inside.

Promises: the secret and the token go to the configured origin only; a token is renewed before it expires and
once after a 401; what is worth repeating (no connection, 408, 429, 5xx) is repeated with jitter, as long as
nobody asked to stop; everything else becomes one of the project's errors. No transfer has a total timeout,
each fails after 60 s without a byte. Not here: what to do with an answer (loop), files (transfers, outbox).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import httpx2
from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from bithaul import __version__
from bithaul.errors import InvalidInput, Unauthorized, Unavailable
from bithaul.exchange.messages import (
    INSTANCE_HEADER,
    WORKER_SCOPE,
    HeartbeatRequest,
    HeartbeatResponse,
    LogBatch,
    Message,
    Problem,
    Receipt,
    RegisterRequest,
    RegisterResponse,
    RunState,
    TaskMessage,
)
from bithaul.worker.backoff import Backoff
from bithaul.worker.link import LATER, Later, Refused, Stopped, WorkAnswer, refuse
from bithaul.worker.patience import Patience
from bithaul.worker.stop import Stop
from bithaul.worker.upload import Body, ResumableUpload

PIECE = 1_048_576
RESUMABLE_BYTES = 2 * PIECE  # larger updates go in chunks: 7 MB take a minute at 1 Mbit/s
_SILENCE = httpx2.Timeout(connect=10.0, read=60.0, write=60.0, pool=60.0)
M = TypeVar("M", bound=Message)


@dataclass
class _Token:
    value: str
    renew_at: float


class CoordinatorClient:
    """Thread-safe; holds one connection pool. Close it when done."""

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        secret: str,
        stop: Stop,
        log: FilteringBoundLogger,
        transport: httpx2.BaseTransport | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._base = httpx2.URL(url.rstrip("/"))
        if self._base.scheme not in ("http", "https") or not self._base.host:
            raise InvalidInput(f"{url!r} is not a coordinator's address; give one like https://host:8817.")
        self._basic = httpx2.BasicAuth(quote(client_id, safe=""), quote(secret, safe=""))
        self._client_id = client_id
        self._clock = clock
        self._stop = stop
        self._patience = Patience(
            str(self._base), stop=stop, log=log, backoff=backoff or Backoff(), jitter=jitter, clock=clock
        )
        self._registered: dict[str, str] = {}  # header with the instance
        self._token: _Token | None = None
        self._token_lock = threading.Lock()
        self._http = httpx2.Client(
            transport=transport,
            timeout=_SILENCE,
            trust_env=not is_loopback(self._base.host),
            headers={"User-Agent": f"bithaul-worker/{__version__}"},
            limits=httpx2.Limits(max_connections=8, keepalive_expiry=60.0),
        )

    def close(self) -> None:
        self._http.close()

    # -- routes ---------------------------------------------------------------------------------------

    def register(self, request: RegisterRequest) -> RegisterResponse:
        """POST /register; waits for as long as the coordinator is away."""
        response = self._persist("POST", "/register", _json(request))
        self._registered = {} if request.instance is None else {INSTANCE_HEADER: request.instance}
        return _parse(RegisterResponse, response)

    def work(self) -> WorkAnswer:
        """GET /work; waits for as long as the coordinator is away."""
        response = self._persist("GET", "/work")
        header = response.headers.get("Bithaul-Run-State")
        state = RunState(header) if header in set(RunState) else None
        wait = _retry_after(response)
        if response.status_code == 204:
            return WorkAnswer(None, 1.0 if wait is None else wait, state)
        return WorkAnswer(_parse(TaskMessage, response), 0.0, state)

    def heartbeat(self, request: HeartbeatRequest, *, persist: bool = False) -> HeartbeatResponse:
        """POST /heartbeat. One try, unless `persist`: then until the grace period after a stop is over."""
        if persist:
            response = self._persist("POST", "/heartbeat", _json(request), urgent=True)
        else:
            response = self._try("POST", "/heartbeat", _json(request))
        return _parse(HeartbeatResponse, response)

    def logs(self, batch: LogBatch) -> None:
        """POST /logs, one try."""
        self._try("POST", "/logs", _json(batch))

    def submit(self, task: int, fence: str, file: Path, *, moved: Callable[[int], None]) -> Receipt:
        """POST /gradient until a receipt: small files as they are, others in chunks that can be resumed.

        `moved` hears each piece's size. Raises `Refused` when there will never be one (409, 413, 422 without
        a receipt, as problem+json), `Gone` when the worker must register first, `Stopped` after the grace
        period of a stop.
        """
        size = file.stat().st_size
        if size > RESUMABLE_BYTES:
            upload = ResumableUpload(
                self._ask, file, task=task, fence=fence, moved=moved, stopped=self._require_time
            )
            return self._patience.persist(
                "POST /gradient", upload.go_on, urgent=True, advanced=upload.advanced
            )

        def body() -> Iterator[bytes]:
            with file.open("rb") as stream:
                while piece := stream.read(PIECE):
                    yield piece
                    moved(len(piece))

        path = f"/gradient?task={task}&fence={fence}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        response = self._persist("POST", path, (headers, body), urgent=True, receipt=True)
        return _parse(Receipt, response)

    @contextmanager
    def download(self, path: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """GET a blob as a stream; the answer is 200, 206 or 416. One try: the caller keeps what arrived.

        A redirect is followed up to three times; another origin than the configured one gets no token.
        Raises `Unavailable` for what is worth repeating.
        """
        url, token = self._url(path), ""
        for _ in range(4):
            bearer = {}
            if (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port):
                token = self._bearer()
                bearer = {"Authorization": f"Bearer {token}"}
            with self._http.stream("GET", url, headers={**headers, **bearer}) as response:
                if response.status_code in (301, 302, 303, 307, 308):
                    url = url.join(response.headers.get("Location", ""))
                    continue
                if response.status_code not in (200, 206, 416):
                    response.read()
                    if response.status_code == 401:
                        self._forget(token)  # the caller tries again with a new one
                    try:
                        self._judge(response)
                    except Later as later:
                        raise Unavailable(f"The coordinator cannot send {path} now: {later}.") from later
                yield response
                return
        raise Unavailable(f"The coordinator redirects {path} in circles.")

    # -- how ------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, headers: Mapping[str, str], body: Body | None) -> httpx2.Response:
        return self._once(method, path, (dict(headers), body), receipt=method == "POST")

    def _require_time(self) -> None:
        if self._stop.expired:
            raise Stopped("the update was not delivered")

    def _persist(
        self,
        method: str,
        path: str,
        content: tuple[dict[str, str], Body | None] | None = None,
        *,
        urgent: bool = False,
        receipt: bool = False,
    ) -> httpx2.Response:
        """Repeat until there is a final answer, or until a stop (`urgent`: and its grace period)."""
        return self._patience.persist(
            f"{method} {path}", lambda: self._once(method, path, content, receipt=receipt), urgent=urgent
        )

    def _try(self, method: str, path: str, content: tuple[dict[str, str], Body]) -> httpx2.Response:
        try:
            return self._once(method, path, content)
        except (Later, httpx2.TransportError) as error:
            raise Unavailable(f"The coordinator did not answer {method} {path}: {error}.") from error

    def _once(
        self,
        method: str,
        path: str,
        content: tuple[dict[str, str], Body | None] | None,
        *,
        receipt: bool = False,
    ) -> httpx2.Response:
        """One request, and a second one with a new token after a 401."""
        headers, body = content if content is not None else ({}, None)
        for renewed in (False, True):
            token = self._bearer()
            response = self._http.request(
                method,
                self._url(path),
                headers={**headers, **self._registered, "Authorization": f"Bearer {token}"},
                content=body() if body is not None else None,
            )
            if response.status_code != 401 or renewed:
                break
            self._forget(token)
        if receipt and response.status_code in (200, 422) and _is_receipt(response):
            return response
        if receipt and response.status_code == 201 and "Location" in response.headers:
            return response
        if receipt and response.status_code == 400:  # a body that was cut on its way; the file is whole
            raise Later("HTTP 400 for an update", _retry_after(response))
        if not response.is_success:
            self._judge(response)
        if receipt:  # 202: gates still run; anything else is not from our coordinator
            raise Later(f"HTTP {response.status_code} without a receipt", _retry_after(response))
        return response

    def _judge(self, response: httpx2.Response) -> None:
        """Raise what an answer other than success means."""
        status, after = response.status_code, _retry_after(response)
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError as error:  # a proxy or a tunnel speaks: nothing to conclude from that
            if status in LATER:
                raise Later(f"HTTP {status}", after) from error
            raise Later(f"HTTP {status} that is not from a bithaul coordinator") from error
        refuse(problem.model_copy(update={"status": status}), client_id=self._client_id, after=after)

    def _url(self, path: str) -> httpx2.URL:
        return httpx2.URL(str(self._base).rstrip("/") + path)

    def _bearer(self) -> str:
        with self._token_lock:
            if self._token is None or self._clock() >= self._token.renew_at:
                self._token = self._fetch_token()
            return self._token.value

    def _forget(self, value: str) -> None:
        with self._token_lock:
            if self._token is not None and self._token.value == value:
                self._token = None

    def _fetch_token(self) -> _Token:
        response = self._http.post(
            self._url("/connect/token"),
            data={"grant_type": "client_credentials", "scope": WORKER_SCOPE},
            auth=self._basic,
        )
        if response.status_code in LATER:
            raise Later(f"HTTP {response.status_code} for a token", _retry_after(response))
        try:
            answer = dict(response.json())
            if "error" in answer:
                raise Unauthorized(
                    f"The coordinator does not accept the secret of client {self._client_id!r} "
                    f"({str(answer['error'])[:60]}); check both, or make a new one: `bithaul keys rotate`."
                )
            value, lifetime = str(answer["access_token"]), float(answer.get("expires_in", 300))
        except (ValueError, KeyError, TypeError) as error:
            raise Later(
                f"HTTP {response.status_code} and no token; is this a bithaul coordinator?"
            ) from error
        return _Token(value, self._clock() + lifetime - min(60.0, 0.2 * lifetime))


def is_loopback(host: str) -> bool:
    """Whether an address is this very machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _json(message: Message) -> tuple[dict[str, str], Body]:
    data = message.model_dump_json().encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    return headers, lambda: iter((data,))


def _parse(kind: type[M], response: httpx2.Response) -> M:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise Refused(
            response.status_code,
            f"The coordinator's answer is no {kind.__name__}; do both sides run the same version of bithaul?",
            code="bad_answer",
        ) from error


def _is_receipt(response: httpx2.Response) -> bool:
    try:
        Receipt.model_validate_json(response.content)
    except ValidationError:
        return False
    return True


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds, also fractions; dates are not used by our coordinator and count as absent."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
