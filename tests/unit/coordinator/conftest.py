"""A real coordinator core on real SQLite or PostgreSQL, with a clock moved by hand and scripted workers."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bithaul.coordinator.blobs.store import UploadedFile
from bithaul.coordinator.commands.claim_task import Claim, claim_task
from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.commands.merge_round import merge_round
from bithaul.coordinator.commands.register_worker import register_worker
from bithaul.coordinator.commands.submit_gradient import submit_gradient
from bithaul.coordinator.context import Coordinator, CrashPoints, open_coordinator
from bithaul.coordinator.database import ledger, runs, versions
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.queries.blobs import weights_blob
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.build import CorpusManifest
from bithaul.corpus.shards import write_shard
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import write_frame
from bithaul.exchange.messages import (
    Capabilities,
    HeldoutLoss,
    Receipt,
    RegisterRequest,
    ReportHeader,
    TaskMessage,
)
from bithaul.exchange.weights import WEIGHT_FORMATS, open_weights
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of

sys.path.insert(0, str(Path(__file__).parents[2] / "servers"))
from postgresql_server import postgres, postgres_server  # noqa: F401 - fixtures

TINY = ModelConfig(
    vocab_size=16, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, context_length=16
)
TOKENS_PER_EXAMPLE = 7  # targets: examples of eight ids


@dataclass
class HandClock:
    """Time moves only when a test says so."""

    time: float = 1_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@dataclass
class CountingIds:
    count: int = 0

    def fence(self) -> str:
        self.count += 1
        return f"{self.count:032x}"

    def nonce(self) -> str:
        self.count += 1
        return f"n{self.count}"


class Crash(BaseException):
    """Simulated death of the process; not an Exception, so nothing may swallow it."""


@dataclass
class House:
    """One run folder that can be closed and opened again."""

    directory: Path
    corpus: Path
    clock: HandClock = field(default_factory=HandClock)
    ids: CountingIds = field(default_factory=CountingIds)
    crash_at: str | None = None
    crash_count: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    c: Coordinator = field(init=False)

    def __post_init__(self) -> None:
        self.open()

    def _hit(self, name: str) -> None:
        self.seen.append(name)
        if name == self.crash_at:
            self.crash_count -= 1
            if self.crash_count == 0:
                raise Crash(name)

    def open(self) -> None:
        settings = load_settings(self.directory, **{"disk_reserve_bytes": 0, **self.settings})
        self.c = open_coordinator(
            settings, clock=self.clock, ids=self.ids, crash_points=CrashPoints(self._hit)
        )

    def reopen(self) -> None:
        self.c.close()
        self.open()

    def create(self, **changes: Any) -> None:
        wanted: dict[str, Any] = {
            "run": "test",
            "model": TINY,
            "recipe": {"batch_examples": 4},
            "corpus_dir": self.corpus,
            "budget_tokens": 1e9,
            "task_seconds": 10.0,
            "codec": "fp32-v1",
            "seed": 3,
        }
        create_run(self.c, CreateRun(**{**wanted, **changes}))

    def register(
        self, *names: str, speed: float = 70.0, audits: bool = False, instance: str | None = None
    ) -> None:
        """Speed 70 with ten-second tasks: 100 examples a task."""
        for name in names:
            register_worker(
                self.c,
                name,
                RegisterRequest(
                    codecs=["fp32-v1", "int8-block-v1", "int8-ef-v1", "topk-2bit-v1"],
                    weight_formats=list(WEIGHT_FORMATS),
                    layout_hash=layout_of(TINY).hash,
                    audits=audits,
                    instance=instance,
                    capabilities=Capabilities(
                        device="test", threads=1, memory_bytes=1, tokens_per_second=speed, software="0"
                    ),
                ),
            )

    def claim(self, worker: str) -> TaskMessage:
        claim = claim_task(self.c, worker)
        assert claim.task is not None, f"no task for {worker}: {claim}"
        return claim.task

    def try_claim(self, worker: str) -> Claim:
        return claim_task(self.c, worker)

    def upload(self, data: bytes) -> UploadedFile:
        with self.c.blobs.receive(self.ids.nonce()) as incoming:
            incoming.write(data)
            self.c.crash_points.hit("upload.chunk")  # as the route does
            return incoming.finish()

    def frame(
        self,
        leased: TaskMessage,
        /,
        *,
        update: np.ndarray[Any, np.dtype[np.float64]] | None = None,
        payload: bytes | None = None,
        **changes: Any,
    ) -> bytes:
        """A well-formed report of this task; `changes` spoil its header."""
        run = self.run
        if payload is None:
            vector = np.full(run.layout.size, 1e-3) if update is None else update
            payload = bytes(codec_named(run.codec).encode(vector, run.layout))
        examples = changes.pop("examples", leased.examples)
        values: dict[str, Any] = {
            "codec": run.codec,
            "run": run.name,
            "layout_hash": run.layout_hash,
            "lineage": leased.lineage,
            "base_version": leased.base_version,
            "task": leased.task,
            "fence": leased.fence,
            "examples": examples,
            "tokens": examples * TOKENS_PER_EXAMPLE,
            "steps": max(1, examples // 4),
            "seconds": 10.0,
            "loss_first": 3.0,
            "loss_last": 2.0,
            "loss_mean": 2.5,
            "heldout": HeldoutLoss(version=leased.base_version, loss=2.25, tokens=9)
            if leased.probe
            else None,
            "payload_size": len(payload),
            "payload_sha256": hashlib.sha256(payload).hexdigest(),
        }
        stream = io.BytesIO()
        write_frame(stream, ReportHeader(**{**values, **changes}), payload)
        return stream.getvalue()

    def report(self, worker: str, task: TaskMessage, **changes: Any) -> Receipt:
        return self.send(worker, task, self.frame(task, **changes))

    def send(self, worker: str, task: TaskMessage, data: bytes) -> Receipt:
        return submit_gradient(self.c, worker, task=task.task, fence=task.fence, upload=self.upload(data))

    def merge(self) -> VersionRow | None:
        return merge_round(self.c)

    def train(self, rounds: int = 1) -> None:
        """Each round makes a version; an update of `ann` that waits goes into the first."""
        with self.c.database.read() as connection:
            waiting = ledger.unmerged(connection, self.run.id)
        if waiting:
            self.report("bob", self.claim("bob"))
            self.clock.time += 10.0
            assert self.merge() is not None
        for _ in range(rounds - bool(waiting)):
            for name in ("ann", "bob"):
                self.report(name, self.claim(name))
            self.clock.time += 10.0
            assert self.merge() is not None

    @property
    def run(self) -> runs.RunRow:
        with self.c.database.read() as connection:
            return runs.get_run(connection)

    @property
    def newest(self) -> VersionRow:
        with self.c.database.read() as connection:
            return versions.newest_version(connection, runs.get_run(connection).id)

    def theta(self, version: int | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
        with self.c.database.read() as connection:
            run = runs.get_run(connection)
            row = versions.find_version(connection, run.id, version or self.newest.version)
        assert row is not None
        kept = row.theta_sha256 or row.sha256
        stored = open_weights(self.c.blobs.get(kept).path, expected_count=run.layout.size)
        return np.array(stored.vector)

    def published(self, version: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """What workers fetch."""
        path = weights_blob(self.c, version).path
        return np.array(open_weights(path, expected_count=self.run.layout.size).vector)


def write_corpus(
    folder: Path,
    *,
    shards: tuple[int, ...] = (300, 200),
    token: Callable[[int, int], int] = lambda shard, _: shard % 16,
) -> None:
    """Examples of eight times one id, `token` of shard and example; no tokenizer, which nobody here needs."""
    folder.mkdir()
    infos = [
        write_shard(folder, f"train-{i:05}", [[token(i, j)] * (TOKENS_PER_EXAMPLE + 1) for j in range(count)])
        for i, count in enumerate(shards)
    ]
    probe = write_shard(folder, "probe-00000", [[1] * 8] * 4)
    CorpusManifest(
        kind="intents",
        description="test",
        generator_version=None,
        seed=0,
        tokenizer_sha256="0" * 64,
        vocab_size=16,
        max_tokens=17,
        shards=infos,
        heldout=[],
        probe=probe,
        train_tokens=sum(i.tokens for i in infos),
        heldout_tokens=0,
        left_out=0,
        unknown_share=0.0,
        heldout_unknown_share=0.0,
    ).save(folder)


MEMORY = Path("/dev/shm")  # where there is one: a real file system on which fsync costs nothing


@contextmanager
def houses(server: Any = None) -> Iterator[Callable[..., House]]:
    made: list[House] = []
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="bithaul-test-", dir=place))

    def make(**options: Any) -> House:
        corpus = folder / "corpus"
        if not corpus.exists():
            write_corpus(corpus)
        directory = folder / f"run{len(made)}"
        if server is not None:
            directory.mkdir()
            (directory / "bithaul.toml").write_text(f'database_url = "{server.fresh()}"\n')
        house = House(directory, corpus, **options)
        made.append(house)
        return house

    try:
        yield make
    finally:
        for house in made:
            house.c.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def corpus_of_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each 64 neighbours, of which a fast worker's task gets two lots, have a token of their own."""
    folder = tmp_path_factory.mktemp("blocks") / "corpus"
    write_corpus(folder, shards=(900, 700), token=lambda shard, i: (shard * 900 + i) // 64 % 16)
    return folder


BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module with `ENGINES = "both"` runs its houses and databases on SQLite and on PostgreSQL."""
    for name in {"make_house", "database_url"} & set(metafunc.fixturenames):
        if getattr(metafunc.module, "ENGINES", "") == "both":
            metafunc.parametrize(name, BOTH, indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if getattr(request, "param", "sqlite") == "postgres":
        return str(request.getfixturevalue("postgres").fresh(migrated=False))
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def make_house(request: pytest.FixtureRequest) -> Iterator[Callable[..., House]]:
    wanted = getattr(request, "param", "sqlite")
    with houses(request.getfixturevalue("postgres") if wanted == "postgres" else None) as make:
        yield make


@pytest.fixture(scope="module")
def make_module_house() -> Iterator[Callable[..., House]]:
    with houses() as make:
        yield make


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    """A run with two registered workers, `ann` and `bob`."""
    made = make_house()
    made.create()
    made.register("ann", "bob")
    return made


@pytest.fixture
def trained(house: House) -> House:
    """Three versions, one update that waits for its round, and files beside."""
    house.train(2)
    house.report("ann", house.claim("ann"))
    (house.directory / "corpus").mkdir()
    for path in house.corpus.iterdir():
        (house.directory / "corpus" / path.name).write_bytes(path.read_bytes())
    (house.directory / "corpus" / "Notes.TXT").write_text("a person's own file")
    (house.directory / "bithaul.toml").write_text("retention_keep = 3\n")
    (house.directory / "run.json").write_text('{"preset": "small"}\n')
    return house
