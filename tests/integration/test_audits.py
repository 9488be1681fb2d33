"""The audit over real HTTP: real workers repeat each other's tasks; one of them only pretends to train."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from bithaul.coordinator.database import fleet, runs
from bithaul.coordinator.database.tables import repetitions, reports, versions
from bithaul.exchange.messages import RunState
from bithaul.model.products import default_path
from bithaul.training import trainer as trainer_module
from bithaul.training.calibrate import Calibration
from bithaul.worker.loop import Worker
from bithaul.worker.session import open_session
from bithaul.worker.settings import WorkerSettings
from bithaul.worker.tools import Tools

HONEST = ("ann", "bob", "cat")


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


def tools(*, pretends: bool) -> Tools:
    def opened(description: Any, *, threads: int, path: str | None = None) -> Any:
        session = open_session(description, threads=threads, path=path)
        return replace(session, trainer=Pretender(session.trainer)) if pretends else session

    def measured(session: Any, *, threads: int, seconds: float) -> Calibration:
        return Calibration(200.0, 0.0, "", "", 1)

    return Tools(open_session=opened, measure=measured)


def live(room: Any, name: str, *, pretends: bool) -> None:
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
            tools=tools(pretends=pretends),
        ).run()


def fleet_at_work(room: Any, *names: str, pretends: str = "", budget: float) -> None:
    for name in names:
        room.secret(name)
    room.make_run(
        gates=["audit"],
        codec="int8-block-v1",
        budget_tokens=budget,
        task_seconds=1.0,
        merge_rule="staleness_sgd",
        merge_options={},
    )
    with room.serve():
        threads = [
            threading.Thread(target=live, args=(room, name), kwargs={"pretends": name == pretends})
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
            assert not thread.is_alive()


def test_honest_workers_are_repeated_and_nothing_counts_twice(room: Any) -> None:
    """Catches tokens that a repetition adds, a miss among equal machines, and a run that does not end."""
    fleet_at_work(room, *HONEST, budget=12_000.0)
    assert room.run.state is RunState.FINISHED
    with room.c.database.read() as connection:
        likenesses = list(connection.execute(select(repetitions.c.likeness)).scalars())
        merged = connection.execute(
            select(func.sum(reports.c.tokens)).where(reports.c.verdict == "accepted")
        ).scalar_one()
        total = connection.execute(select(func.max(versions.c.tokens_total))).scalar_one()
        spent = runs.spent(connection, room.run.id)
    assert len(likenesses) >= 2
    assert min(likenesses) > 0.9
    assert merged == total == spent.merged
    assert (spent.accepted, spent.leased) == (0, 0)


def test_a_worker_that_pretends_loses_trust(room: Any) -> None:
    """Catches an audit that compares nothing, and one that blames who found it."""
    fleet_at_work(room, *HONEST, "eve", pretends="eve", budget=50_000.0)
    with room.c.database.read() as connection:
        rows = {row.id: row for row in fleet.list_workers(connection)}
    assert rows["eve"].trust_score < 1.0
    assert "came out differently, twice in a row" in rows["eve"].trust_reason
    assert [rows[name].trust_score for name in HONEST] == [1.0] * 3
