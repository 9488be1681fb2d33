"""Real processes over a line that is slow, breaks and ends; computers that lose power or have a full disk.

The kernel's netem is not everywhere, so the line is `simulation.slowline`, which says what it leaves out.
Everything else is real: `bithaul coordinator` and `bithaul worker` as processes, kill -9, a file system that
is full. Waits end by what happened, not by the clock.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.identity.clients import create_client
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.build import build_corpus
from bithaul.corpus.example import Example
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.messages import WORKER_SCOPE
from bithaul.exchange.weights import WEIGHTS
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of
from bithaul.simulation.slowline import Profile, SlowLine

pytestmark = [pytest.mark.process, pytest.mark.skipif(os.name != "posix", reason="kill -9 and mounts")]

WORDS = ["stop", "fuel", "dallas", "route", "eta", "load", "break", "north"]
HOME = Profile(up=1.5e6, down=3e6, latency=0.02, loss=0.0001)  # ADSL's shape, some twelve times as fast
MB = 1_000_000


class Party:
    """A run with one task in its budget, whose update is some 4.7 MB, and the processes around it."""

    def __init__(self, folder: Path, workers: Path, *, weights: str = "fp32") -> None:
        self.folder, self.workers = folder, workers
        examples = [Example(f"{a} {b}", "navigate", (("city", a),)) for a in WORDS for b in WORDS]
        manifest = build_corpus(
            folder / "corpus", examples[:60], examples[60:], max_tokens=65, seed=1, min_frequency=1
        )
        config = ModelConfig(
            vocab_size=manifest.vocab_size,
            hidden_size=128,
            intermediate_size=344,
            num_layers=3,
            num_heads=4,
            context_length=64,
        )
        wanted = CreateRun(
            run="line",
            model=config,
            recipe={"batch_examples": 8},
            corpus_dir=folder / "corpus",
            budget_tokens=1.0,
            task_seconds=2.0,
            codec="fp32-v1",
            weights=weights,
            probe_every=0,
        )
        with closing(open_coordinator(load_settings(folder, disk_reserve_bytes=0))) as c:
            create_run(c, wanted)
            self._secret = create_client(c, "w1", scope=WORKER_SCOPE)
        self.update_bytes = codec_named("fp32-v1").encoded_size(layout_of(config))
        self.weights_bytes = WEIGHTS[weights].value_bytes * layout_of(config).size
        self.processes: list[subprocess.Popen[str]] = []
        self.port = 0

    def coordinator(self) -> subprocess.Popen[str]:
        """Started, or started again on the same port; it answers."""
        process = self._start("coordinator", "--dir", self.folder, "--port", self.port, "--json")
        assert process.stdout is not None
        self.port = int(json.loads(process.stdout.readline())["url"].rpartition(":")[2])
        return process

    def worker(self, url: str) -> subprocess.Popen[str]:
        return self._start(
            *("worker", "--url", url, "--client-id", "w1", "--state-dir", self.workers / "w1"),
            *("--threads", 1, "--calibration-seconds", 0.1, "--exit-when-finished", "--json"),
            *("--allow-insecure-lan",),
            log=self.workers / "w1.log",
        )

    def _start(self, *arguments: object, log: Path | None = None) -> subprocess.Popen[str]:
        with (log or Path(os.devnull)).open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "bithaul", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "BITHAUL_CLIENT_SECRET": self._secret, "BITHAUL_DISK_RESERVE_BYTES": "0"},
            )
        self.processes.append(process)
        return process

    @property
    def log(self) -> list[dict[str, object]]:
        lines = (self.workers / "w1.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def arrived(self) -> int:
        """Bytes of an unfinished upload that the coordinator has."""
        return max((p.stat().st_size for p in (self.folder / "uploads").glob("*") if p.is_file()), default=0)

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(f"file:{self.folder / 'coordinator.db'}?mode=ro", uri=True)) as db:
            return db.execute(query).fetchall()

    def end(self) -> None:
        for process in self.processes:
            die(process)

    def counted_once(self) -> None:
        """One report, merged into version 2, and no other version."""
        assert self.rows("SELECT verdict, merged_in FROM reports") == [("accepted", 2)]
        assert self.rows("SELECT MAX(version), COUNT(*) FROM versions") == [(2, 2)]
        assert not list((self.workers / "w1" / "outbox").iterdir())


def die(process: subprocess.Popen[str]) -> None:
    """kill -9, if it lives."""
    process.kill()
    process.wait(30)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def party(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Party]:
    """A parameter says how weights are published."""
    made = Party(tmp_path / "run", tmp_path, weights=getattr(request, "param", "fp32"))
    yield made
    made.end()


@contextmanager
def home_line(party: Party, profile: Profile = HOME) -> Iterator[SlowLine]:
    line = SlowLine(("127.0.0.1", party.port), profile)
    try:
        yield line
    finally:
        line.close()


def until(condition: Callable[[], object], what: str, *, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in {seconds:g} s: {what}"
        time.sleep(0.02)


def test_a_worker_killed_in_its_upload_sends_only_the_rest(party: Party) -> None:
    """Catches an update lost with its process, trained again, or sent from the start."""
    party.coordinator()
    with home_line(party) as line:
        first = party.worker(line.url)
        until(lambda: party.arrived > MB, "a megabyte of the update")
        die(first)
        kept, before = party.arrived, line.up.bytes
        assert MB < kept < party.update_bytes
        assert party.worker(line.url).wait(120) == 0
        sent = line.up.bytes - before
    party.counted_once()
    assert sent < party.update_bytes - kept + 0.2 * MB
    assert [entry["event"] for entry in party.log].count("trained") == 1


@pytest.mark.parametrize("after", [pytest.param(MB, marks=pytest.mark.slow), None])
def test_a_coordinator_killed_in_an_upload_keeps_what_it_has(party: Party, after: int | None) -> None:
    """Dead by kill -9 after a megabyte, or when the last byte is there; started again on the same folder.

    Catches an upload that begins again, a receipt that was never written, an update counted twice.
    """
    coordinator = party.coordinator()
    with home_line(party) as line:
        worker = party.worker(line.url)
        whole = party.update_bytes
        until(lambda: party.arrived > (after or whole) or party.rows("SELECT 1 FROM reports"), "the update")
        die(coordinator)
        party.coordinator()
        assert worker.wait(120) == 0
        assert line.up.bytes < whole + 0.7 * MB
    party.counted_once()


@pytest.mark.parametrize("party", ["fp32", "bf16"], indirect=True)
def test_a_line_that_breaks_in_both_directions(party: Party) -> None:
    """Catches a transfer that starts over, a worker that gives up, an answer counted twice, and bf16 weights
    that cost more than half of fp32 ones: 1.2 MB come down instead of 2.4."""
    party.coordinator()
    with home_line(party) as line:
        worker = party.worker(line.url)
        until(lambda: line.down.bytes > 0.5 * MB, "a part of the weights")
        line.cut()
        until(lambda: party.arrived > MB, "a megabyte of the update")
        line.cut()
        line.refusing = True
        time.sleep(1.0)
        line.refusing = False
        until(lambda: party.arrived > 3 * MB or worker.poll() is not None, "more of it")
        line.cut()
        assert worker.wait(120) == 0
        assert party.weights_bytes < line.down.bytes < party.weights_bytes + 0.5 * MB
        assert line.up.bytes < party.update_bytes + 1.5 * MB  # two cuts, each up to what was under way
    party.counted_once()


@pytest.mark.slow
def test_sigterm_in_an_upload_is_polite_on_both_sides(party: Party) -> None:
    """The worker delivers what it has before it goes; the coordinator ends without an error."""
    coordinator = party.coordinator()
    with home_line(party) as line:
        worker = party.worker(line.url)
        until(lambda: party.arrived > 0.5 * MB, "a part of the update")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(120) == 0
    until(lambda: party.rows("SELECT 1 FROM reports WHERE merged_in = 2"), "the merge")
    coordinator.send_signal(signal.SIGTERM)
    assert coordinator.wait(30) == 0
    party.counted_once()


@contextmanager
def small_disk(place: Path, *, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of `size` bytes at `place`; the answer makes it another size."""
    place.mkdir(parents=True, exist_ok=True)

    def mount(*options: str) -> bool:
        done = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
        return done.returncode == 0

    if os.getuid() != 0 or not mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        pytest.skip("mounting a small file system needs root and the right to mount")
    try:
        yield lambda now: mount("-o", f"remount,size={now}") or pytest.fail("not resized")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_coordinator_whose_disk_is_full_says_so_and_goes_on(tmp_path: Path) -> None:
    """Catches a half-stored update, an acknowledged one that is lost, a coordinator that dies of it."""
    with small_disk(tmp_path / "disk", size=64 * MB):
        party = Party(tmp_path / "disk" / "run", tmp_path)
        try:
            party.coordinator()
            filler = tmp_path / "disk" / "filler"
            with filler.open("wb") as file:
                free = os.statvfs(filler)
                file.write(bytes(free.f_bavail * free.f_bsize - 2 * MB))  # the update does not fit any more
            with home_line(party, Profile(up=20e6, down=20e6, latency=0.0)) as line:
                worker = party.worker(line.url)
                until(lambda: any("disk" in str(entry) for entry in party.log), "the refusal in the log")
                assert party.rows("SELECT COUNT(*) FROM reports") == [(0,)]
                seen = party.rows("SELECT last_seen FROM workers")
                until(lambda: party.rows("SELECT last_seen FROM workers") != seen, "a heartbeat meanwhile")
                assert worker.poll() is None
                filler.unlink()
                assert worker.wait(120) == 0
            party.counted_once()
        finally:
            party.end()


def test_a_worker_whose_disk_is_full_gives_the_task_back(tmp_path: Path) -> None:
    """Room for the weights, not for the update. Catches half an update sent, and a task nobody gets back."""
    with small_disk(tmp_path / "w1", size=4 * MB) as resize:
        party = Party(tmp_path / "run", tmp_path)
        try:
            party.coordinator()
            with home_line(party, Profile(up=20e6, down=20e6, latency=0.0)) as line:
                worker = party.worker(line.url)
                failed = "SELECT reason FROM leases WHERE state = 'released' OR state = 'failed'"
                until(lambda: party.rows(failed), "the task given back")
                assert "out_of_disk" in str(party.rows(failed)[0])
                assert party.rows("SELECT COUNT(*) FROM reports") == [(0,)]
                resize(64 * MB)
                assert worker.wait(180) == 0
            party.counted_once()
        finally:
            party.end()
