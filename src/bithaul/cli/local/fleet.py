"""The coordinator and the workers of one `up`, as child processes, and the HTTP line to the coordinator."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2
from pydantic import ValidationError

from bithaul.cli.local.folder import RunFolder
from bithaul.cli.local.prepare import ADMIN_CLIENT, worker_ids
from bithaul.cli.local.processes import Child, record, stop_leftovers
from bithaul.coordinator.queries.progress import ProgressView
from bithaul.coordinator.server import PortInUse
from bithaul.errors import Unavailable
from bithaul.exchange.messages import ADMIN_SCOPE

START_SECONDS = 60.0
STOP_SECONDS = 60.0


@dataclass
class Fleet:
    """Starts in order (coordinator, then workers), stops in the opposite one."""

    folder: RunFolder
    workers: int
    threads: int
    port: int
    coordinator: Child = field(init=False)
    children: list[Child] = field(init=False)
    _token: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.coordinator = Child(
            "coordinator",
            ["coordinator", "--dir", str(self.folder.root), "--port", str(self.port)],
            self.folder.logs / "coordinator.log",
        )
        self.children = []

    @property
    def url(self) -> str:
        return (self.folder.root / "coordinator.url").read_text(encoding="utf-8").strip()

    def start(self) -> None:
        """Start everything once the coordinator answers. Raises `Unavailable` with its last words."""
        stop_leftovers(self.folder.processes_file)
        url_file = self.folder.root / "coordinator.url"
        url_file.unlink(missing_ok=True)
        self.coordinator.start()
        record(self.folder.processes_file, [self.coordinator])
        end = time.monotonic() + START_SECONDS
        while not (url_file.exists() and self._answers()):
            if not self.coordinator.running or time.monotonic() > end:
                words = self.coordinator.last_words(1).removeprefix("bithaul: ")
                if self.coordinator.exit_code == PortInUse.exit_code:
                    raise PortInUse(words)
                raise Unavailable(words or f"The coordinator did not start; see {self.coordinator.log}.")
            time.sleep(0.05)
        # A coordinator that dies comes back at the same address, or its workers could not find it.
        self.coordinator.arguments = [*self.coordinator.arguments[:-1], self.url.rsplit(":", 1)[1].strip("/")]
        for client_id in worker_ids(self.workers):
            self.children.append(self._worker(client_id))
            self.children[-1].start()
        self._record()

    def revive(self, say: Callable[[str], None]) -> None:
        """Start again what has died."""
        for child in [self.coordinator, *self.children]:
            if sentence := child.revive(time.monotonic()):
                say(sentence)
                self._record()

    def progress(self) -> ProgressView | None:
        """The coordinator's view of the run, or None while it does not answer."""
        try:
            answer = self._get("/api/progress")
            if answer.status_code == 401:
                self._token = ""
                answer = self._get("/api/progress")
            return ProgressView.model_validate_json(answer.content) if answer.status_code == 200 else None
        except (httpx2.HTTPError, OSError, ValidationError, KeyError, ValueError):
            return None

    def stop_workers(self) -> None:
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait(STOP_SECONDS)

    def stop(self) -> None:
        """Stop workers, then the coordinator; what does not stop in time is killed, which loses nothing."""
        self.stop_workers()
        self.coordinator.terminate()
        self.coordinator.wait(STOP_SECONDS)
        self.folder.processes_file.unlink(missing_ok=True)

    def _worker(self, client_id: str) -> Child:
        return Child(
            client_id,
            [
                "worker",
                *("--url", self.url),
                *("--client-id", client_id),
                *("--secret-file", str(self.folder.secret_file(client_id))),
                *("--state-dir", str(self.folder.worker_state(client_id))),
                *("--threads", str(self.threads)),
            ],
            self.folder.logs / f"{client_id}.log",
            {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)},
        )

    def _record(self) -> None:
        record(self.folder.processes_file, [self.coordinator, *self.children])

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/status", timeout=5.0).status_code == 200
        except (httpx2.HTTPError, OSError):
            return False

    def _get(self, path: str) -> httpx2.Response:
        if not self._token:
            answer = httpx2.post(
                f"{self.url}/connect/token",
                data={"grant_type": "client_credentials", "scope": ADMIN_SCOPE},
                auth=(ADMIN_CLIENT, self.folder.read_secret(ADMIN_CLIENT)),
                timeout=10.0,
            )
            self._token = str(answer.json()["access_token"])
        return httpx2.get(self.url + path, headers={"Authorization": f"Bearer {self._token}"}, timeout=10.0)


def threads_per_worker(workers: int, wanted: int | None) -> int:
    """An equal share of this machine's cores, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return wanted or max(1, cores // workers)
