"""A small coordinator in memory, spoken to over the real client: real tokens, leases, merging, faults."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from hypothesis import settings as hypothesis_settings

from bithaul.corpus.shards import write_shard
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import read_header, verify_payload
from bithaul.exchange.messages import (
    HeartbeatRequest,
    HeartbeatResponse,
    LogBatch,
    Range,
    Receipt,
    RegisterRequest,
    RegisterResponse,
    ReportHeader,
    RunDescription,
    RunState,
    ShardRef,
    TaskMessage,
    Verdict,
)
from bithaul.exchange.weights import write_weights
from bithaul.model.config import ModelConfig
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of
from bithaul.training.recipe import TrainingRecipe
from bithaul.worker.backoff import Backoff
from bithaul.worker.client import CoordinatorClient
from bithaul.worker.logship import LogBuffer, worker_log
from bithaul.worker.loop import Worker
from bithaul.worker.settings import WorkerSettings
from bithaul.worker.stop import Stop

hypothesis_settings.register_profile("no_deadline", deadline=None)
hypothesis_settings.load_profile("no_deadline")

URL = "http://127.0.0.1:8817"
CONFIG = ModelConfig(
    vocab_size=48, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, context_length=16
)
RECIPE = TrainingRecipe(peak_lr=1e-2, batch_examples=8, optimizer_warmup_steps=2)
Fault = Callable[[httpx2.Request], httpx2.Response]


def problem(status: int, code: str, **headers: str) -> httpx2.Response:
    body = {"type": "about:blank", "title": "t", "status": status, "detail": f"It is {code}.", "code": code}
    return httpx2.Response(status, json=body, headers=headers)


def pieces(data: bytes) -> Iterator[bytes]:
    """Like a network: MockTransport would hand over bytes already read."""
    for i in range(0, len(data), 65_536):
        yield data[i : i + 65_536]


def blob(request: httpx2.Request, data: bytes) -> httpx2.Response:
    digest = hashlib.sha256(data).hexdigest()
    wanted = request.headers.get("Range")
    if wanted and request.headers.get("If-Range") == f'"{digest}"':
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return httpx2.Response(206, content=pieces(data[start:]), headers=headers)
    return httpx2.Response(200, content=pieces(data))


@dataclass
class FakeCoordinator:
    """Leases `tasks` slices of 16 examples, merges each accepted update at rate 1 with the real codecs."""

    folder: Path
    codec: str = "fp32-v1"
    tasks: int = 2
    examples_per_task: int = 16
    secret: str = "bhw_right"
    probe: bool = False
    audited: frozenset[int] = frozenset()  # numbers of tasks that are flagged
    compared: frozenset[int] = frozenset()  # of tasks whose receipts say so
    token_seconds: float = 3600.0
    verdict: Verdict = Verdict.ACCEPTED
    clip: float = 1.0
    state_when_done: RunState = RunState.FINISHED
    soft_stop_seconds: float = 100.0
    answer: HeartbeatResponse = field(
        default_factory=lambda: HeartbeatResponse(
            drain=False, paused=False, lease_open=True, state=RunState.RUNNING
        )
    )

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        examples = [rng.integers(0, CONFIG.vocab_size, 10).tolist() for _ in range(64)]
        self.info = write_shard(self.folder, "train-00000", examples)
        self.layout = layout_of(CONFIG)
        self.theta = initial_vector(CONFIG, seed=0)
        self.version = 1
        self.versions: dict[int, bytes] = {}
        self.deltas: dict[int, bytes] = {}
        self.announce()
        self.calls: Counter[str] = Counter()
        self.faults: dict[str, list[Fault]] = {}
        self.tokens: list[str] = []
        self.registrations: list[RegisterRequest] = []
        self.registered = False
        self.beats: list[HeartbeatRequest] = []
        self.logs: list[LogBatch] = []
        self.open: TaskMessage | None = None
        self.receipts: dict[tuple[int, str], Receipt] = {}
        self.updates: list[ReportHeader] = []
        self.bodies: list[bytes] = []
        self.done = 0
        self.on_beat: Callable[[HeartbeatRequest], None] = lambda beat: None

    def announce(self) -> None:
        stream = io.BytesIO()
        write_weights(stream, self.version, self.theta)
        self.versions[self.version] = stream.getvalue()

    @property
    def run(self) -> RunDescription:
        ref = ShardRef(
            id=self.info.id,
            examples=self.info.examples,
            tokens=self.info.tokens,
            size=self.info.bytes,
            sha256=self.info.sha256,
            index_size=self.info.index_bytes,
            index_sha256=self.info.index_sha256,
        )
        return RunDescription(
            run="test",
            state=RunState.RUNNING,
            model=CONFIG.model_dump(mode="json"),
            recipe=RECIPE.model_dump(mode="json"),
            layout_hash=self.layout.hash,
            tokenizer_sha256="0" * 64,
            label_token=None,
            codec=self.codec,
            weight_format="weights-v1",
            shards=[ref],
            probe=ref,
            heartbeat_seconds=0.02,
        )

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        kind = f"{request.method} {path}"
        self.calls[kind] += 1
        for key in (kind, path.split("/")[1]):
            if self.faults.get(key):
                return self.faults[key].pop(0)(request)
        if path == "/connect/token":
            return self.token(request)
        if request.headers.get("Authorization") not in {f"Bearer {t}" for t in self.tokens}:
            return problem(401, "unauthorized")
        match path.split("/")[1:]:
            case ["register"]:
                self.registered = True
                self.registrations.append(RegisterRequest.model_validate_json(request.read()))
                return reply(RegisterResponse(worker="w", run=self.run))
            case _ if not self.registered:
                return problem(410, "not_registered")
            case ["work"]:
                return self.work()
            case ["heartbeat"]:
                return self.heartbeat(HeartbeatRequest.model_validate_json(request.read()))
            case ["gradient"]:
                return self.gradient(request)
            case ["logs"]:
                self.logs.append(LogBatch.model_validate_json(request.read()))
                return httpx2.Response(204)
            case ["weights", version] if int(version) in self.versions:
                return blob(request, self.versions[int(version)])
            case ["weights", version, "delta"] if int(version) in self.deltas:
                return blob(request, self.deltas[int(version)])
            case ["corpus", "train-00000"]:
                return blob(request, (self.folder / "train-00000.bin").read_bytes())
            case ["corpus", "train-00000", "index"]:
                return blob(request, (self.folder / "train-00000.idx").read_bytes())
        return problem(404, "not_found")

    def token(self, request: httpx2.Request) -> httpx2.Response:
        import base64

        wanted = base64.b64encode(f"w:{self.secret}".encode()).decode()
        if request.headers.get("Authorization") != f"Basic {wanted}":
            return httpx2.Response(401, json={"error": "invalid_client"})
        self.tokens.append(f"token-{len(self.tokens)}")
        return httpx2.Response(
            200,
            json={"access_token": self.tokens[-1], "token_type": "Bearer", "expires_in": self.token_seconds},
        )

    def slice(self, number: int) -> Range:
        first = (number * self.examples_per_task) % self.info.examples
        return Range(shard="train-00000", first=first, count=self.examples_per_task)

    def work(self) -> httpx2.Response:
        if self.open is None and self.done < self.tasks:
            data = self.versions[self.version]
            part = self.slice(self.done)
            self.open = TaskMessage(
                task=self.done + 1,
                fence=f"{self.done + 1:032x}",
                base_version=self.version,
                weights_sha256=hashlib.sha256(data).hexdigest(),
                weights_size=len(data),
                ranges=[part],
                examples=part.count,
                progress_start=0.2,
                progress_end=0.3,
                seed=self.done,
                soft_stop_seconds=self.soft_stop_seconds,
                probe=self.probe,
                audit=self.done + 1 in self.audited,
                deadline_seconds=600,
            )
        if self.open is None:
            state = {"Bithaul-Run-State": self.state_when_done.value, "Retry-After": "0.001"}
            return httpx2.Response(204, headers=state)
        return httpx2.Response(
            200, content=self.open.model_dump_json(), headers={"Bithaul-Run-State": "running"}
        )

    def heartbeat(self, beat: HeartbeatRequest) -> httpx2.Response:
        self.beats.append(beat)
        self.on_beat(beat)
        if beat.outcome is not None:
            self.open = None
            self.done += 1
        return reply(self.answer)

    def gradient(self, request: httpx2.Request) -> httpx2.Response:
        key = (int(request.url.params["task"]), request.url.params["fence"])
        body = request.read()
        assert int(request.headers["Content-Length"]) == len(body)
        self.bodies.append(body)
        if key not in self.receipts:
            if self.open is None or self.open.fence != key[1]:
                return problem(409, "unknown_fence")
            self.receipts[key] = self.judge(io.BytesIO(body), key)
        receipt = self.receipts[key]
        return reply(receipt, status=422 if receipt.verdict is Verdict.REJECTED else 200)

    def judge(self, file: io.BytesIO, key: tuple[int, str]) -> Receipt:
        header = read_header(file)
        verify_payload(file, header)
        self.updates.append(header)
        self.open = None
        self.done += 1
        verdict = Verdict.COMPARED if key[0] in self.compared else self.verdict
        if verdict is Verdict.ACCEPTED:
            codec = codec_named(header.codec)
            for piece in codec.pieces(file, self.layout, chunk_values=1000):
                offset, u = piece.offset, piece.values()
                piece = self.theta[offset : offset + u.size].astype(np.float64)
                self.theta[offset : offset + u.size] = piece - u
            self.version += 1
            self.announce()
        return Receipt(task=key[0], fence=key[1], verdict=verdict, tokens=header.tokens, clip=self.clip)

    def shipped(self) -> list[str]:
        return [entry.event for batch in self.logs for entry in batch.entries]


def reply(message: Any, *, status: int = 200) -> httpx2.Response:
    return httpx2.Response(status, json=json.loads(message.model_dump_json()))


@dataclass
class Bench:
    """What a test of the worker needs; `client` talks to `fake`."""

    fake: FakeCoordinator
    client: CoordinatorClient
    stop: Stop
    buffer: LogBuffer
    output: io.StringIO
    log: Any
    now: list[float]

    def worker(self, folder: Path, **changes: Any) -> Worker:
        """A worker with its state in `folder`; `changes` are settings."""
        settings = WorkerSettings(
            url=URL,
            client_id="w",
            state_dir=folder / "state",
            beacon=folder / "health",
            exit_when_finished=True,
            calibration_seconds=0.01,
            **changes,
        )
        return Worker(
            settings, self.client, stop=self.stop, log=self.log, buffer=self.buffer, heartbeat_seconds=0.02
        )


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    folder = tmp_path / "coordinator"
    folder.mkdir()
    fake = FakeCoordinator(folder)
    stop, buffer, output = Stop(grace=0.2), LogBuffer(), io.StringIO()
    log = worker_log(buffer, stream=output)
    now = [0.0]
    client = CoordinatorClient(
        URL,
        client_id="w",
        secret="bhw_right",
        stop=stop,
        log=log,
        transport=httpx2.MockTransport(fake),
        backoff=Backoff(first=0.001, longest=0.002),
        clock=lambda: now[0],
        jitter=lambda: 0.5,
    )
    bench = Bench(fake, client, stop, buffer, output, log, now)
    yield bench
    bench.client.close()  # a test may have put new ones there
    bench.stop.close()
