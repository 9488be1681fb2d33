"""The loss score over real HTTP: the coordinator's service looks at what real workers send."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from bithaul.coordinator.commands.scores import score_next
from bithaul.coordinator.database import fleet
from bithaul.coordinator.database.tables import scores
from bithaul.corpus.example import Example
from bithaul.exchange.messages import RunState
from bithaul.model.products import default_path
from bithaul.training import trainer as trainer_module
from bithaul.training.calibrate import Calibration
from bithaul.worker.loop import Worker
from bithaul.worker.session import open_session
from bithaul.worker.settings import WorkerSettings
from bithaul.worker.tools import Tools

HONEST = ("ann", "bob")
PATIENCE = 120.0  # seconds for the service to score the first report


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "choose_path", lambda shapes, forced=None: default_path())


class Pretender:
    """Trains honestly and then reports as long a way in a direction that means nothing."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._start: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def load(self, vector: Any) -> None:
        self._start = np.array(vector)
        self._trainer.load(vector)

    def vector(self) -> Any:
        length = np.linalg.norm(self._trainer.vector() - self._start)
        way = np.random.default_rng().standard_normal(self._start.size, np.float32)
        return self._start + way * np.float32(length / np.linalg.norm(way))


def live(room: Any, name: str, *, pretends: bool) -> None:
    """A worker whose tasks are some sixty examples: it says that it is slow."""

    def opened(description: Any, *, threads: int, path: str | None = None) -> Any:
        session = open_session(description, threads=threads, path=path)
        return replace(session, trainer=Pretender(session.trainer)) if pretends else session

    def measured(session: Any, *, threads: int, seconds: float) -> Calibration:
        return Calibration(200.0, 0.0, "", "", 1)

    settings = WorkerSettings(
        url=room.url, client_id=name, state_dir=room.workers / name, exit_when_finished=True
    )
    with room.client(name) as peer:
        Worker(
            settings,
            peer.client,
            stop=peer.stop,
            log=peer.log,
            buffer=peer.buffer,
            heartbeat_seconds=0.1,
            tools=Tools(open_session=opened, measure=measured),
        ).run()


def count(room: Any, query: Any) -> int:
    with room.c.database.read() as connection:
        return int(connection.execute(query).scalar_one())


def test_who_pretends_weighs_less_and_who_works_does_not(make_room: Any) -> None:
    """Catches a service that does not run or looks at other examples than workers train."""
    room, draw = make_room(score_interval=0.1), random.Random(1)
    words = [f"{a}{b}" for a in "bcdfghklmnprstvz" for b in ("a", "ali", "o", "omu", "e", "eni", "u", "ura")]
    examples = [Example(" ".join(draw.choices(words, k=8)), "navigate", ()) for _ in range(1200)]
    for name in (*HONEST, "eve"):
        room.secret(name)
    room.make_run(
        examples=examples,
        gates=["score"],
        codec="int8-block-v1",
        budget_tokens=40_000.0,
        task_seconds=1.0,
        merge_rule="staleness_sgd",
        merge_options={},
    )
    scored = select(func.count()).select_from(scores)
    with room.serve():
        threads = [
            threading.Thread(target=live, args=(room, name), kwargs={"pretends": name == "eve"})
            for name in (*HONEST, "eve")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
            assert not thread.is_alive()
        end = time.monotonic() + PATIENCE
        while not count(room, scored) and time.monotonic() < end:
            time.sleep(0.1)
    assert room.run.state is RunState.FINISHED
    assert count(room, scored) >= 1, "by the service itself"
    while score_next(room.c) is not None:
        pass
    with room.c.database.read() as connection:
        rows = {row.id: row for row in fleet.list_workers(connection)}
    assert min(row.scored for row in rows.values()) >= 6
    assert min(rows[name].score for name in HONEST) > 0.5
    assert [rows[name].trust.fit.factor for name in HONEST] == [1.0, 1.0]
    assert rows["eve"].score < 0.3
    assert rows["eve"].trust.weight(0.0) < 0.7
