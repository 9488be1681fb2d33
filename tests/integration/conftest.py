"""A real coordinator (SQLite, services, uvicorn on a real port) and a real worker, in this process.

The worker runs in the test's own thread and ends with the run, so nothing here waits for a moment to come.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from sqlalchemy import select
from structlog.typing import FilteringBoundLogger

from bithaul.coordinator.app import create_app
from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.database import runs, versions
from bithaul.coordinator.database.tables import logs
from bithaul.coordinator.identity.clients import create_client
from bithaul.coordinator.server import Server, bind
from bithaul.coordinator.services.runner import ServiceRunner
from bithaul.coordinator.services.startup import check_run
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.build import CorpusManifest, build_corpus
from bithaul.corpus.example import Example
from bithaul.exchange.messages import WORKER_SCOPE
from bithaul.exchange.weights import open_weights
from bithaul.model.config import ModelConfig
from bithaul.worker.client import CoordinatorClient
from bithaul.worker.logship import LogBuffer, worker_log
from bithaul.worker.loop import Worker
from bithaul.worker.settings import WorkerSettings
from bithaul.worker.stop import Stop

sys.path.insert(0, str(Path(__file__).parents[1] / "servers"))
from postgresql_server import postgres, postgres_server  # noqa: F401 - fixtures

WORDS = ["stop", "fuel", "dallas", "route", "eta", "load", "break", "north"]
EXAMPLES = [Example(f"{a} {b}", "navigate", (("city", a),)) for a in WORDS for b in WORDS]
MEMORY = Path("/dev/shm")  # where there is one: a real file system on which fsync costs nothing


@dataclass(frozen=True)
class Peer:
    """What a worker is made of."""

    client: CoordinatorClient
    stop: Stop
    buffer: LogBuffer
    log: FilteringBoundLogger


@dataclass
class Room:
    """One run folder and the coordinator that serves it. `serve` is a context of the HTTP server."""

    directory: Path
    clients: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    c: Coordinator = field(init=False)
    workers: Path = field(init=False)
    url: str = ""

    def __post_init__(self) -> None:
        self.workers = self.directory / "workers"
        self.c = open_coordinator(load_settings(self.directory, **{"disk_reserve_bytes": 0, **self.settings}))

    @property
    def corpus(self) -> Path:
        return self.directory / "corpus"

    @property
    def run(self) -> runs.RunRow:
        with self.c.database.read() as connection:
            return runs.get_run(connection)

    @property
    def version(self) -> int:
        with self.c.database.read() as connection:
            return versions.newest_version(connection, runs.get_run(connection).id).version

    def theta(self, version: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """As workers fetch it."""
        path = self.weights_file(version)
        return np.array(open_weights(path, expected_count=self.run.layout.size).vector)

    def own_theta(self, version: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """As the coordinator keeps it to itself."""
        with self.c.database.read() as connection:
            row = versions.find_version(connection, runs.get_run(connection).id, version)
        assert row is not None
        assert row.theta_sha256 is not None
        path = self.c.blobs.get(row.theta_sha256).path
        return np.array(open_weights(path, expected_count=self.run.layout.size).vector)

    def weights_file(self, version: int) -> Path:
        with self.c.database.read() as connection:
            row = versions.find_version(connection, runs.get_run(connection).id, version)
        assert row is not None
        return self.c.blobs.get(row.sha256).path

    def secret(self, client_id: str) -> str:
        if client_id not in self.clients:
            self.clients[client_id] = create_client(self.c, client_id, scope=WORKER_SCOPE)
        return self.clients[client_id]

    def make_run(self, *, examples: Sequence[Example] = EXAMPLES, **changes: Any) -> CorpusManifest:
        """Sixty examples in four shards and a model of a few thousand parameters with two layers."""
        manifest = build_corpus(
            self.corpus,
            examples[:-4],
            examples[-4:],
            max_tokens=65,
            seed=1,
            min_frequency=1,
            shard_examples=max(15, len(examples) // 4),
        )
        config = ModelConfig(
            vocab_size=manifest.vocab_size,
            hidden_size=48,
            intermediate_size=96,
            num_layers=2,
            num_heads=2,
            context_length=64,
        )
        wanted: dict[str, Any] = {
            "run": "test",
            "model": config,
            "recipe": {"batch_examples": 8},
            "corpus_dir": self.corpus,
            "budget_tokens": 1e6,
            "merge_options": {"eta": 1.0, "mu": 0.0},
        }
        create_run(self.c, CreateRun(**{**wanted, **changes}))
        return manifest

    @contextmanager
    def serve(self) -> Iterator[str]:
        """As `bithaul coordinator` does: check, services, HTTP. Gives the address."""
        check_run(self.c)
        listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ready = threading.Event()
        app = create_app(self.c, runner=ServiceRunner.standard(self.c))
        server = Server(app, self.c.settings, on_ready=ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(20)
            yield self.url
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

    @contextmanager
    def client(self, client_id: str, *, secret: str | None = None) -> Iterator[Peer]:
        """The worker's own HTTP client, with a log that nobody reads."""
        stop, buffer = Stop(), LogBuffer()
        with Path(os.devnull).open("w") as nowhere:
            log = worker_log(buffer, stream=nowhere)
            client = CoordinatorClient(
                self.url, client_id=client_id, secret=secret or self.secret(client_id), stop=stop, log=log
            )
            try:
                yield Peer(client, stop, buffer, log)
            finally:
                client.close()
                stop.close()

    def work(self, client_id: str = "w1", *, secret: str | None = None) -> LogBuffer:
        """A whole life of a worker in this thread, until the run is finished; what is left of its log."""
        settings = WorkerSettings(
            url=self.url,
            client_id=client_id,
            state_dir=self.workers / client_id,
            exit_when_finished=True,
            calibration_seconds=0.05,
        )
        with self.client(client_id, secret=secret) as peer:
            worker = Worker(
                settings, peer.client, stop=peer.stop, log=peer.log, buffer=peer.buffer, heartbeat_seconds=0.1
            )
            worker.run()
            return peer.buffer

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Fields of every entry of this name that workers have shipped."""
        with self.c.database.read() as connection:
            rows = connection.execute(select(logs.c.fields).where(logs.c.event == event))
            return [json.loads(fields) for (fields,) in rows]

    @contextmanager
    def http(self, client_id: str) -> Iterator[httpx2.Client]:
        """A client with this worker's token."""
        with httpx2.Client(base_url=self.url, timeout=20, trust_env=False) as client:
            answer = client.post(
                "/connect/token",
                data={"grant_type": "client_credentials"},
                auth=(client_id, self.secret(client_id)),
            )
            client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            yield client


MakeRoom = Callable[..., Room]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_room() -> Iterator[MakeRoom]:
    made: list[Room] = []
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="bithaul-test-", dir=place))

    def make(directory: Path | None = None, **settings: Any) -> Room:
        made.append(Room(directory or folder / f"run{len(made)}", settings=settings))
        return made[-1]

    try:
        yield make
    finally:
        for room in made:
            room.c.close()
        shutil.rmtree(folder)


@pytest.fixture
def room(make_room: MakeRoom) -> Room:
    return make_room()
