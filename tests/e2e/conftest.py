"""Real processes over real HTTP: `bithaul up` as a person starts it, with a model that trains in seconds."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

TINY = """
hidden_size = 64
intermediate_size = 128
num_layers = 2
num_heads = 4
context_length = 96
"""


@dataclass
class Up:
    """One `bithaul up`, running or done."""

    root: Path
    process: subprocess.Popen[str]

    @property
    def run(self) -> Path:
        return self.root / "run"

    def children(self) -> dict[str, psutil.Process]:
        """The coordinator and the workers by name."""
        found = {}
        for process in psutil.Process(self.process.pid).children():
            words = process.cmdline()
            if "coordinator" in words:
                found["coordinator"] = process
            elif "worker" in words:
                found[words[words.index("--client-id") + 1]] = process
        return found

    def query(self, sql: str) -> list[tuple[object, ...]]:
        with closing(
            sqlite3.connect(f"file:{self.run / 'coordinator.db'}?mode=ro", uri=True, timeout=10)
        ) as db:
            return db.execute(sql).fetchall()

    def versions(self) -> int:
        try:
            return int(str(self.query("SELECT max(version) FROM versions")[0][0] or 0))
        except sqlite3.OperationalError:
            return 0

    def wait_for_version(self, version: int, *, seconds: float = 120) -> None:
        wait_until(lambda: self.versions() >= version or self.process.poll() is not None, seconds)
        assert self.process.poll() is None, self.finish()

    def finish(self, *, seconds: float = 240) -> tuple[int, dict[str, object], str]:
        """Exit code, the JSON of the last line, and what was said on standard error."""
        out, err = self.process.communicate(timeout=seconds)
        lines = out.strip().splitlines()
        return self.process.returncode, json.loads(lines[-1]) if lines else {}, err


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Poll what other processes do; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


@dataclass
class Starter:
    root: Path
    model: Path
    started: list[Up] = field(default_factory=list)

    def __call__(self, *options: str, environment: dict[str, str] | None = None) -> Up:
        process = subprocess.Popen(
            [sys.executable, "-m", "bithaul", "up", "--dir", str(self.root / "run"), "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "BITHAUL_CALIBRATION_SECONDS": "0.5", **(environment or {})},
        )
        self.started.append(Up(self.root, process))
        return self.started[-1]

    def tiny(self, *options: str, tokens: int = 150_000, environment: dict[str, str] | None = None) -> Up:
        """Truck Mate with a model that needs seconds."""
        return self(
            *("--preset", str(self.model), "--examples", "2000", "--task-seconds", "1"),
            *("--budget-tokens", str(tokens), *options),
            environment=environment,
        )


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Starter]:
    """Start `bithaul up`; whatever still runs at the end of the test is killed."""
    model = tmp_path / "tiny.toml"
    model.write_text(TINY, encoding="utf-8")
    starter = Starter(tmp_path, model)
    yield starter
    for one in starter.started:
        if one.process.poll() is None:
            for child in psutil.Process(one.process.pid).children(recursive=True):
                child.send_signal(signal.SIGKILL)
            one.process.kill()
        one.process.communicate()
