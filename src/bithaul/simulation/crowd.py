"""Hundreds of workers over real HTTP without their computing: what a coordinator answers, and how fast.

Each worker has its own credential, token and connection. It registers, leases a task, sends heartbeats with
progress, and after its time submits an update (or gives the task back), again and again. The coordinator is a
process of its own; all workers are one asyncio loop in this one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bithaul.errors import Unavailable
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import frame_head
from bithaul.exchange.messages import ReportHeader, TaskMessage
from bithaul.exchange.weights import WEIGHT_FORMATS
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of
from bithaul.worker.outbox import payload_sha256

HEARTBEAT_SECONDS = 30.0
ABLE = {"device": "cpu", "threads": 1, "memory_bytes": 1, "tokens_per_second": 50.0, "software": "crowd"}
PIECE = 1 << 18


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One keep-alive HTTP/1.1 connection, opened when it is needed and again when the server closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.repeated = 0

    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str], body: Sequence[bytes] = ()
    ) -> Answer:
        """Repeats once on a connection that had been closed meanwhile. Raises `OSError`, `Unavailable`."""
        fresh = self._streams is None
        try:
            return await self._once(method, path, headers, body)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            if fresh:
                raise Unavailable(f"{method} {path}: the connection was closed.") from None
            self.repeated += 1
            return await self._once(method, path, headers, body)

    async def _once(
        self, method: str, path: str, headers: Mapping[str, str], body: Sequence[bytes]
    ) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {sum(map(len, body))}", "", ""]
        writer.write("\r\n".join(lines).encode())
        for part in (memoryview(piece) for piece in body):
            for i in range(0, len(part), PIECE):
                writer.write(part[i : i + PIECE])
                await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        length = int(found.get("content-length", "0"))
        data = await reader.readexactly(length) if length else b""
        if found.get("connection") == "close":
            self.close()
        return Answer(int(head[0].split(" ")[1]), found, data)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams = None


@dataclass
class Tally:
    """Seconds each kind of request took, and what was no success."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    measuring: bool = False

    def took(self, kind: str, seconds: float) -> None:
        if self.measuring:
            self.seconds.setdefault(kind, []).append(seconds)

    def told(self) -> dict[str, object]:
        """Counts and milliseconds by kind."""
        return {
            kind: {"count": len(taken), **percentiles(taken)} for kind, taken in sorted(self.seconds.items())
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: `p50_ms`, `p95_ms`, `p99_ms` and `max_ms`; nearest rank."""
    ranked = sorted(seconds)
    at = {f"p{p}_ms": ranked[max(0, -(-p * len(ranked) // 100) - 1)] for p in (50, 95, 99)}
    return {name: round(1000 * value, 2) for name, value in {**at, "max_ms": ranked[-1]}.items()}


@dataclass(frozen=True)
class Credential:
    client_id: str
    secret: str


class Member:
    """One worker of the crowd. `updates`: whether it submits or gives its tasks back."""

    def __init__(
        self, url: str, credential: Credential, tally: Tally, *, task_seconds: float, updates: bool, seed: int
    ) -> None:
        self._wire, self._credential, self._tally = Wire(url), credential, tally
        self._task_seconds, self._updates = task_seconds, updates
        self._random = random.Random(seed)  # noqa: S311 - jitter
        self._token, self._renew_at = "", 0.0
        self._run: dict[str, Any] = {}
        self.joined = False

    @property
    def repeated(self) -> int:
        return self._wire.repeated

    async def live(self, *, after: float) -> None:
        """For as long as it is not cancelled, beginning `after` seconds from now."""
        try:
            await asyncio.sleep(after)
            await self._join()
            self.joined = True
            while True:
                task = await self._lease()
                if task is not None:
                    await self._work(task)
        except Exception as error:  # noqa: BLE001 - whatever ends a worker is an error of the crowd
            self._tally.errors.append(f"{self._credential.client_id}: {type(error).__name__}: {error}")
        finally:
            self._wire.close()

    async def one_update(self) -> list[bytes]:
        """What it would submit for the task it has or gets."""
        await self._join()
        task = await self._lease()
        assert task is not None
        self._wire.close()  # the next loop is another one
        return update_of(self._run, task)

    async def timed_submit(self) -> float:
        """Seconds of one submit for the task it has or gets."""
        while (task := await self._lease()) is None:
            pass
        began = time.perf_counter()
        await self._submit(task)
        taken = time.perf_counter() - began
        self._wire.close()
        return taken

    async def _join(self) -> None:
        message: dict[str, object] = {
            "codecs": ["int8-block-v1", "topk-2bit-v1"],
            "weight_formats": list(WEIGHT_FORMATS),
        }
        answer = await self._ask("register", "POST", "/register", message)
        self._run = answer.json()["run"]
        ready = {**message, "layout_hash": self._run["layout_hash"], "capabilities": ABLE}
        await self._ask("register", "POST", "/register", ready)

    async def _lease(self) -> TaskMessage | None:
        answer = await self._ask("lease", "GET", "/work", wanted=(200, 204))
        if answer.status == 200:
            return TaskMessage.model_validate_json(answer.body)
        await asyncio.sleep(float(answer.headers.get("retry-after", 1)) + self._random.random())
        return None

    async def _work(self, task: TaskMessage) -> None:
        """Heartbeats until the time is over; then an update, or the task back."""
        lease = {"task": task.task, "fence": task.fence}
        end = time.monotonic() + self._task_seconds * (0.8 + 0.2 * self._random.random())
        tokens = 0
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, HEARTBEAT_SECONDS, 0.5 * self._task_seconds))
            tokens += 100
            beat = {**lease, "tokens": tokens, "tokens_per_second": 50.0, "activity": "training"}
            answer = await self._ask("heartbeat", "POST", "/heartbeat", beat)
            if not answer.json()["lease_open"]:
                return
        if self._updates:
            await self._submit(task)
        else:
            await self._ask("release", "POST", "/heartbeat", {**lease, "outcome": "released", "code": "rest"})

    async def _submit(self, task: TaskMessage) -> None:
        body = update_of(self._run, task)
        query = f"/gradient?task={task.task}&fence={task.fence}"
        answer = await self._ask("submit", "POST", query, body, wanted=(200,))
        verdict = str(answer.json().get("verdict"))
        self._tally.verdicts[verdict] = self._tally.verdicts.get(verdict, 0) + 1

    async def _ask(
        self,
        kind: str,
        method: str,
        path: str,
        message: object = None,
        *,
        wanted: Sequence[int] = (200,),
    ) -> Answer:
        if time.monotonic() >= self._renew_at:
            await self._new_token()
        headers = {"Authorization": f"Bearer {self._token}"}
        body: list[bytes] = []
        if isinstance(message, list):
            headers["Content-Type"], body = "application/octet-stream", message
        elif message is not None:
            headers["Content-Type"], body = "application/json", [json.dumps(message).encode()]
        began = time.perf_counter()
        answer = await self._wire.ask(method, path, headers=headers, body=body)
        self._tally.took(kind, time.perf_counter() - began)
        if answer.status not in wanted:
            raise Unavailable(f"{method} {path}: HTTP {answer.status} {answer.body[:200]!r}")
        return answer

    async def _new_token(self) -> None:
        pair = f"{self._credential.client_id}:{self._credential.secret}".encode()
        headers = {
            "Authorization": f"Basic {base64.b64encode(pair).decode()}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        began = time.perf_counter()
        body = [b"grant_type=client_credentials"]
        answer = await self._wire.ask("POST", "/connect/token", headers=headers, body=body)
        self._tally.took("token", time.perf_counter() - began)
        if answer.status != 200:
            raise Unavailable(f"no token: HTTP {answer.status} {answer.body[:200]!r}")
        found = answer.json()
        self._token = found["access_token"]
        self._renew_at = time.monotonic() + 0.8 * float(found["expires_in"])


@lru_cache(maxsize=2)
def _payload(model: str, codec: str) -> tuple[bytes, str]:
    """An update of small random values, the same for all: making it is not what is measured; its SHA-256."""
    layout = layout_of(ModelConfig.model_validate_json(model))
    values = np.random.default_rng(0).standard_normal(layout.size, dtype=np.float32)
    values *= np.float32(1e-3)
    payload = bytes(codec_named(codec).encode(values, layout))
    return payload, payload_sha256(payload)


def update_of(run: Mapping[str, Any], task: TaskMessage) -> list[bytes]:
    """A good report, in two parts."""
    payload, sha256 = _payload(json.dumps(run["model"]), run["codec"])
    return [frame_head(report_header(run, task, payload_size=len(payload), payload_sha256=sha256)), payload]


def report_header(
    run: Mapping[str, Any], task: TaskMessage, *, payload_size: int, payload_sha256: str
) -> ReportHeader:
    """What a good report of this task says; `run` has `run`, `codec` and `layout_hash`."""
    return ReportHeader(
        codec=run["codec"],
        run=run["run"],
        layout_hash=run["layout_hash"],
        lineage=task.lineage,
        base_version=task.base_version,
        task=task.task,
        fence=task.fence,
        examples=task.examples,
        tokens=max(1, task.examples * 20),
        steps=1,
        seconds=1.0,
        loss_first=3.0,
        loss_last=2.0,
        loss_mean=2.5,
        payload_size=payload_size,
        payload_sha256=payload_sha256,
    )


class Crowd:
    """`size` workers at `url`; the first `heavy` of them submit whatever the others do, again and again."""

    def __init__(
        self,
        url: str,
        credentials: Sequence[Credential],
        *,
        task_seconds: float,
        updates: bool,
        heavy: int = 0,
    ) -> None:
        self.tally, self._heavy_tally = Tally(), Tally()
        self.members = [
            Member(
                url,
                credential,
                self._heavy_tally if i < heavy else self.tally,
                task_seconds=1.0 if i < heavy else task_seconds,
                updates=updates or i < heavy,
                seed=i,
            )
            for i, credential in enumerate(credentials)
        ]

    @property
    def repeated(self) -> int:
        """Requests that met a connection the coordinator had closed meanwhile, and were sent again."""
        return sum(member.repeated for member in self.members)

    @property
    def uploads(self) -> Tally:
        """What the heavy ones did."""
        return self._heavy_tally

    async def run(self, *, ramp: float, seconds: float) -> None:
        """They come within `ramp` seconds, evenly; `seconds` are measured from when all have registered."""
        gap = ramp / max(1, len(self.members))
        lives = [asyncio.create_task(m.live(after=i * gap)) for i, m in enumerate(self.members)]
        await asyncio.sleep(ramp)
        while not all(life.done() or m.joined for life, m in zip(lives, self.members, strict=True)):
            await asyncio.sleep(0.1)
        for tally in (self.tally, self._heavy_tally):
            tally.measuring = True
        await asyncio.sleep(seconds)
        for tally in (self.tally, self._heavy_tally):
            tally.measuring = False
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line through (x, y); 0 for fewer than two."""
    if len(points) < 2:
        return 0.0
    fit = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    return fit.slope
