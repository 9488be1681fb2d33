"""A real coordinator process on a pretended run, for browser tests, pictures and benchmarks of the site."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pretend import MACHINES, STEP, pretend_run
from sqlalchemy import update

from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.database import fleet
from bithaul.coordinator.identity.clients import create_client
from bithaul.coordinator.identity.passwords import hash_password
from bithaul.coordinator.identity.people import create_person
from bithaul.coordinator.identity.tables import clients, people
from bithaul.coordinator.settings import load_settings

TINY = "hidden_size = 64\nintermediate_size = 128\nnum_layers = 2\nnum_heads = 4\ncontext_length = 96\n"
NAME, PASSWORD = "ada", "correct horse battery staple"


def chromium_path() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def set_up(folder: Path) -> Path:
    """Settings under which nobody is gone meanwhile and any disk is large enough; no run, no person."""
    (folder / "bithaul.toml").write_text("worker_gone_seconds = 86400\ndisk_reserve_bytes = 0\n")
    return folder


def prepare(folder: Path, *, versions: int) -> Path:
    """Makes of `folder` a pretended run with keys for its machines and one person with a known password."""
    set_up(folder)
    c = open_coordinator(load_settings(folder))
    pretend_run(c, count=versions, weights=True)
    for machine in MACHINES:
        create_client(c, machine, scope="bithaul.worker")
    _use_keys(c, versions=versions)
    welcome(c)
    c.close()
    return folder


def train_tiny(folder: Path) -> Path:
    """`bithaul up` in the returned `folder`/run until it is finished: two real workers, in seconds."""
    model = folder / "tiny.toml"
    model.write_text(TINY, encoding="utf-8")
    words = ["up", "--dir", str(folder / "run"), "--preset", str(model), "--examples", "600", "--json"]
    words += ["--task-seconds", "1", "--budget-tokens", "60000"]
    done = subprocess.run(
        [sys.executable, "-m", "bithaul", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "BITHAUL_CALIBRATION_SECONDS": "0.5"},
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def _use_keys(c: Coordinator, *, versions: int) -> None:
    """As the machines would have in that time: at their last word, from addresses at home."""
    begun = c.clock.now() - versions * STEP
    with c.database.write() as connection:
        seen = {w.id: w.last_seen for w in fleet.list_workers(connection)}
        for number, (machine, what) in enumerate(MACHINES.items()):
            values = {
                "created_at": begun - 40.0 * (len(MACHINES) - number),
                "rotated_at": begun + 0.8 * versions * STEP if machine == "lab-xeon" else None,
                "last_used_at": seen[machine] - 60.0 * what.threads,
                "last_used_from": f"192.168.1.{20 + number}",
            }
            connection.execute(update(clients).where(clients.c.id == machine).values(values))


def welcome(c: Coordinator) -> None:
    """One person with a known password."""
    create_person(c, NAME)
    values = {"password_hash": hash_password(PASSWORD), "must_change": False}
    with c.database.write() as connection:
        connection.execute(update(people).where(people.c.name == NAME).values(values))


@dataclass
class Process:
    """`bithaul coordinator` and, for tests that write beside it, its database."""

    folder: Path
    url: str = ""
    c: Coordinator = field(init=False)
    process: subprocess.Popen[str] = field(init=False)

    def start(self) -> None:
        command = [sys.executable, "-m", "bithaul", "coordinator", "--dir", str(self.folder), "--json"]
        port = self.url.rpartition(":")[2] or "0"
        log = (self.folder / "coordinator.log").open("a")
        self.process = subprocess.Popen(
            [*command, "--port", port], stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ
        )
        log.close()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / "coordinator.log").read_text()
        self.url = json.loads(line)["url"]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(fill: Callable[[Path], Path], *changes: Callable[[Coordinator], object]) -> Iterator[Process]:
    """A process on the run that `fill` makes in a new folder, after all `changes`; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="bithaul-browser-") as scratch:
        running = Process(fill(Path(scratch)))
        with closing(open_coordinator(load_settings(running.folder))) as running.c:
            for change in changes:
                change(running.c)
            running.start()
            try:
                yield running
            finally:
                running.stop()
