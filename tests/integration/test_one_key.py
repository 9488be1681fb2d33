"""Two machines with one key, over real HTTP: who works, who waits, who is let in after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from bithaul.coordinator.commands.steer import call_gone
from bithaul.coordinator.database import fleet
from bithaul.coordinator.database.tables import leases, reports
from bithaul.worker.instance import instance_of

pytestmark = pytest.mark.process
GONE = 600.0  # seconds of silence, longer than any start on a busy machine


class Machine:
    """A worker's process with a state folder of its own; `w1` like all others here."""

    def __init__(self, room: Any, folder: Path) -> None:
        self._room = room
        self.folder = folder
        self.log = folder / "log"
        folder.mkdir()
        self.start()

    def start(self) -> None:
        self._known = len(self.lines)
        url, state = self._room.url, self.folder / "state"
        options = ["--threads", "1", "--calibration-seconds", "0.1", "--json"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "bithaul", "worker", "--url", url, "--client-id", "w1"),
                    *("--state-dir", str(state), *options),
                ],
                env={**os.environ, "BITHAUL_CLIENT_SECRET": self._room.secret("w1")},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def lines(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        return [json.loads(x) for x in self.log.read_text().splitlines() if x.startswith("{")]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Since its last start."""
        return [x for x in self.lines[self._known :] if x["event"] == event]

    @property
    def instance(self) -> str:
        return instance_of(self.folder / "state")


@pytest.fixture
def machine(make_room: Any, tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    room = make_room(heartbeat_seconds=0.2, worker_gone_seconds=GONE)
    room.make_run(task_seconds=1.0)
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(room, tmp_path / name))
        return made[-1]

    with room.serve():
        make.room = room  # type: ignore[attr-defined]
        yield make
        for each in made:
            each.kill()


def until(condition: Callable[[], Any], what: str) -> None:
    pause = threading.Event()
    for _ in range(1200):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError(f"{what} did not happen")


def test_one_key_is_one_machine(machine: Any) -> None:
    """Catches two machines that train one task; a killed worker that waits; a key lost with its machine."""
    room, first = machine.room, machine("attic")

    def registered() -> str | None:
        with room.c.database.read() as connection:
            row = fleet.find_worker(connection, "w1")
        return None if row is None else row.instance

    def counted() -> int:
        with room.c.database.read() as connection:
            return len(connection.execute(select(reports.c.seq)).all())

    until(lambda: counted() > 0, "a first report")
    assert registered() == first.instance
    second = machine("desk")
    until(lambda: second.said("cannot register yet"), "a refusal")
    (refusal, *_) = second.said("cannot register yet")
    assert refusal["code"] == "identity_in_use"
    assert f"wait {GONE:g} s" in refusal["reason"]

    first.kill()
    first.start()  # the same folder: let in at once, though the killed one was heard a moment ago
    until(lambda: first.said("joined run"), "a restart")
    before = counted()
    until(lambda: counted() > before, "a report after the restart")
    assert not first.said("cannot register yet")
    assert registered() == first.instance
    assert not second.said("joined run")

    first.kill()
    call_gone(room.c, "w1")
    until(lambda: second.said("joined run"), "the way in for the other machine")
    assert registered() == second.instance
    before = counted()
    until(lambda: counted() > before, "a report of the other machine")
    with room.c.database.read() as connection:
        states = connection.execute(select(leases.c.state)).scalars().all()
    assert states.count("open") <= 1
