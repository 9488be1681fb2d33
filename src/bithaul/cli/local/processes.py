"""The child processes of `bithaul up`: started, watched, restarted when they die, stopped politely.

A child runs in its own session, so Ctrl-C reaches only `up`, which then stops the workers before the
coordinator. Children of an `up` that was killed are found by `stop_leftovers` and ended first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bithaul.cli.local.folder import write_json
from bithaul.coordinator.server import PortInUse
from bithaul.errors import (
    BithaulError,
    Conflict,
    CorruptFile,
    InvalidInput,
    NotFound,
    OutOfDisk,
    Unauthorized,
    Unavailable,
)
from bithaul.visible import visible

MAX_RESTARTS = 20
_LONGEST_WORDS = 65_536  # bytes of a log that are read for its end
_KINDS = (InvalidInput, CorruptFile, NotFound, Conflict, Unauthorized, OutOfDisk, PortInUse)
_BY_EXIT_CODE: dict[int | None, type[BithaulError]] = {kind.exit_code: kind for kind in _KINDS}
_FINAL = {CorruptFile.exit_code, Unauthorized.exit_code}  # another start would end the same way


@dataclass
class Child:
    """One child: how to start it, where its output goes, how often it had to be started again."""

    name: str
    arguments: Sequence[str]  # of `bithaul`
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    next_start: float = 0.0
    log_start: int = 0  # where the output of this start begins

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.log_start = output.tell()
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter, arguments as a list
                [sys.executable, "-m", "bithaul", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None before it was started and while it runs."""
        return None if self.process is None else self.process.poll()

    def last_words(self, lines: int = 3) -> str:
        """The end of what the child has logged since it was started, for an error message."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self.log_start, file.seek(0, os.SEEK_END) - _LONGEST_WORDS))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return " | ".join(visible(line.strip()) for line in text.strip().splitlines()[-lines:])

    def failure(self) -> BithaulError:
        """The error that the child ended with, known by its exit code, in its own last words."""
        words = self.last_words(1).removeprefix("bithaul: ")
        kind = _BY_EXIT_CODE.get(self.exit_code, Unavailable)
        return kind(words or f"{self.name} stopped (exit code {self.exit_code}); see {self.log}.")

    def revive(self, now: float) -> str | None:
        """Start the child again if it has died, with growing pauses. Returns a sentence when it did.

        Raises its `failure` when another start would not help, and `Unavailable` with its last words when it
        keeps dying.
        """
        if self.running or self.process is None:
            return None
        if self.next_start == 0.0:
            if self.exit_code in _FINAL:
                raise self.failure()
            if self.restarts >= MAX_RESTARTS:
                raise Unavailable(
                    f"{self.name} keeps stopping (exit code {self.process.returncode}); "
                    f"see {self.log}: {self.last_words()}"
                )
            self.next_start = now + min(0.5 * 2 ** min(self.restarts, 5), 15.0)
            return None
        if now < self.next_start:
            return None
        code, words = self.process.returncode, self.last_words(1)
        self.next_start, self.restarts = 0.0, self.restarts + 1
        self.start()
        return f"{self.name} had stopped (exit code {code}) and was started again" + (words and f": {words}")

    def terminate(self) -> None:
        if self.running and self.process is not None:
            self.process.terminate()

    def wait(self, seconds: float) -> int | None:
        """Exit code, or None if it had to be killed after `seconds`."""
        if self.process is None:
            return 0
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


def record(path: Path, children: Sequence[Child]) -> None:
    """Remember process ids and start times, so that a later `up` can end what a killed one left behind."""
    rows = []
    for child in children:
        if child.process is not None and child.running:
            try:
                rows.append(
                    {"pid": child.process.pid, "started": psutil.Process(child.process.pid).create_time()}
                )
            except psutil.NoSuchProcess:
                continue
    write_json(path, rows)


def stop_leftovers(path: Path, *, seconds: float = 20.0) -> int:
    """End children of an earlier `up` that are still alive. Returns how many there were."""
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return 0
    alive = []
    for row in rows:
        try:
            process = psutil.Process(int(row["pid"]))
            if abs(process.create_time() - float(row["started"])) < 1.0:
                process.terminate()
                alive.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, KeyError, TypeError, ValueError):
            continue
    _, stubborn = psutil.wait_procs(alive, timeout=seconds)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn, timeout=5.0)
    return len(alive)
