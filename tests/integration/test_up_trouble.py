"""`bithaul up` on a run that is in trouble: it says what is wrong and what to do, and harms nothing.

The run is prepared in this process, so every `up` here resumes it. When it speaks: test_up_standstill.py.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bithaul.cli.local.folder import RunFolder, RunSpec
from bithaul.cli.local.prepare import data_digest, prepare

pytestmark = pytest.mark.process

TINY = "hidden_size=16\nintermediate_size=32\nnum_layers=1\nnum_heads=2\ncontext_length=32\n"


@dataclass
class Trouble:
    """One prepared run and the `up` that is tried on it."""

    folder: RunFolder
    out: Path
    err: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, **environment: str) -> None:
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bithaul", "up", "--dir", str(self.folder.root), "--json", *options],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "BITHAUL_CALIBRATION_SECONDS": "0.2", **environment},
            )

    @property
    def said(self) -> str:
        """Standard error so far."""
        return self.err.read_text(encoding="utf-8")

    def line(self, words: str) -> str:
        """The first line that holds `words`, waited for."""
        self.wait_for(lambda: words in self.said)
        return next(line for line in self.said.splitlines() if words in line)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 45.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.said
            time.sleep(0.05)

    def ends(self, *options: str) -> tuple[int, dict[str, object], str]:
        """Exit code, the JSON and standard error of an `up` that ends by itself."""
        self.start(*options)
        assert self.process is not None
        code = self.process.wait(60)
        lines = self.out.read_text(encoding="utf-8").splitlines()
        return code, json.loads(lines[-1]) if lines else {}, self.said

    def newest_weights(self) -> Path:
        """The file of the newest version."""
        database = self.folder.root / "coordinator.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as db:
            query = "SELECT sha256 FROM versions ORDER BY version DESC LIMIT 1"
            sha256 = str(db.execute(query).fetchone()[0])
        return self.folder.root / "blobs" / sha256[:2] / sha256

    def files(self) -> dict[str, bytes]:
        """Everything in the run's folder except for the lock."""
        root = self.folder.root
        return {
            str(p.relative_to(root)): p.read_bytes()
            for p in root.rglob("*")
            if p.is_file() and p.name != "up.lock"
        }

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            for process in (*psutil.Process(self.process.pid).children(), self.process):
                process.kill()
            self.process.wait(60)


@pytest.fixture
def trouble(tmp_path: Path) -> Iterator[Trouble]:
    data, model, root = tmp_path / "t.tsv", tmp_path / "tiny.toml", tmp_path / "run"
    data.write_text("".join(f"play {w}\tmusic\n" for w in ("this", "that", "it")) * 8, encoding="utf-8")
    model.write_text(TINY, encoding="utf-8")
    root.mkdir()
    spec = RunSpec(
        preset=str(model),
        train=str(data),
        valid=str(data),
        data_sha256=data_digest(data, data),
        workers=1,
        task_seconds=0.5,
    )
    one = Trouble(RunFolder(root), tmp_path / "out", tmp_path / "err")
    prepare(one.folder, spec, budget_tokens=10**9, budget_seconds=None, say=lambda _: None)
    yield one
    one.end()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_lost_database_changes_nothing_else(trouble: Trouble, how: str) -> None:
    """Catches secrets that are replaced, so that a restored backup of the database is of no use."""
    database = trouble.folder.root / "coordinator.db"
    for file in trouble.folder.root.glob("coordinator.db*"):
        file.unlink()
    if how == "empty":
        database.touch()
    before = {name: data for name, data in trouble.files().items() if "coordinator.db" not in name}
    code, answer, said = trouble.ends("--budget-tokens", "3000")
    assert (code, answer["error"], said.count("\n")) == (4, "not_found", 1), said
    assert str(database) in said
    assert "restore it" in said
    after = trouble.files()
    assert {name: data for name, data in after.items() if "coordinator.db" not in name} == before
    assert database.exists() == (how == "empty")


@pytest.mark.parametrize("content", [b"wrong\n", b"\xff\xfe"])
def test_a_wrong_secret_of_up_ends_it(trouble: Trouble, content: bytes) -> None:
    """Catches an `up` that waits for ever for a coordinator that refuses it."""
    secret = trouble.folder.secret_file("up")
    secret.write_bytes(content)
    code, answer, said = trouble.ends()
    assert (code, answer["error"]) == (6, "unauthorized"), said
    assert str(secret) in said.splitlines()[-1]
    assert "delete it" in said


def test_a_secret_that_was_deleted_is_made_anew(trouble: Trouble) -> None:
    """Holds the advice that the errors above give."""
    for client in ("up", "worker-1"):
        trouble.folder.secret_file(client).unlink()
    code, _, said = trouble.ends("--budget-tokens", "500")
    assert code == 0, said


def test_a_refused_worker_is_not_started_again(trouble: Trouble) -> None:
    """Catches twenty useless starts without a reason; the other worker goes on."""
    secret = trouble.folder.secret_file("worker-1")
    secret.write_text("wrong\n")
    code, _, said = trouble.ends("--workers", "2", "--budget-tokens", "500")
    assert code == 0, said
    told = [line for line in said.splitlines() if "worker-1" in line]
    assert len(told) == 1, said
    assert "does not accept the secret" in told[0]
    assert str(secret) in told[0]
    assert "not started again" in told[0]


def test_no_worker_left_ends_up(trouble: Trouble) -> None:
    secret = trouble.folder.secret_file("worker-1")
    secret.write_text("wrong\n")
    code, answer, said = trouble.ends()
    assert (code, answer["error"]) == (6, "unauthorized"), said
    assert "No worker is left" in said
    assert str(secret) in said.splitlines()[-1]


def test_a_worker_that_dies_is_started_again_with_its_last_words(trouble: Trouble) -> None:
    state = trouble.folder.worker_state("worker-1")
    state.parent.mkdir()
    state.write_text("in the way of the folder")
    trouble.start()
    told = trouble.line("was started again")
    assert told.startswith("worker-1 had stopped (exit code 2) and was started again: bithaul: ")
    assert str(state) in told


def test_damaged_weights_end_a_resumed_run_as_a_corrupt_file(trouble: Trouble) -> None:
    """Catches "try again later" for what no later try mends."""
    path = trouble.newest_weights()
    flip(path)
    code, answer, said = trouble.ends()
    assert (code, answer["error"]) == (3, "corrupt_file"), said
    assert str(path) in said.splitlines()[-1]
    assert "backup" in said
    assert "fetch" not in said


def test_weights_damaged_while_they_are_trained_are_named(trouble: Trouble) -> None:
    """Catches an `up` that stands still without a word, and a log of nothing but "service failed"."""
    trouble.start()
    first = trouble.newest_weights()
    trouble.wait_for(lambda: trouble.newest_weights() != first)
    good: dict[Path, bytes] = {}

    def damaged() -> bool:  # the newest may be merged with just now: again, until it stays the newest
        path = trouble.newest_weights()
        if path not in good:
            good[path] = path.read_bytes()
            flip(path)
        return "no new version for" in trouble.said

    trouble.wait_for(damaged)
    told = trouble.line("no new version for")
    assert "does not have" in told, "of the merger or, when it had not fetched them yet, of the worker"
    assert "SHA-256" in told
    log = (trouble.folder.logs / "coordinator.log").read_text()
    failed = [line for line in log.splitlines() if "service merger failed: " in line]
    assert len(failed) <= 8, "the same failure is logged several times a second"
    assert all("does not have its SHA-256" in line for line in failed)
