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
from bithaul.errors import CorruptFile, Unauthorized, Unavailable
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
    silence: str = field(init=False, default="")  # why the last `progress` was None
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
        """Start everything once the coordinator answers. Raises what it ended with, or `Unavailable`."""
        stop_leftovers(self.folder.processes_file)
        url_file = self.folder.root / "coordinator.url"
        url_file.unlink(missing_ok=True)
        self.coordinator.start()
        record(self.folder.processes_file, [self.coordinator])
        end = time.monotonic() + START_SECONDS
        while not (url_file.exists() and self._answers()):
            if not self.coordinator.running:
                raise self.coordinator.failure()
            if time.monotonic() > end:
                raise Unavailable(
                    f"The coordinator did not answer within {START_SECONDS:.0f} s; "
                    f"see {self.coordinator.log}: {self.coordinator.last_words(1)}"
                )
            time.sleep(0.05)
        # A coordinator that dies comes back at the same address, or its workers could not find it.
        self.coordinator.arguments = [*self.coordinator.arguments[:-1], self.url.rsplit(":", 1)[1].strip("/")]
        for client_id in worker_ids(self.workers):
            self.children.append(self._worker(client_id))
            self.children[-1].start()
        self._record()

    def revive(self, say: Callable[[str], None]) -> None:
        """Start again what has died, except for a worker that would end the same way again.

        Raises what the coordinator ended with if starting it again is in vain, and the same for a worker once
        none is left.
        """
        for child in [self.coordinator, *self.children]:
            try:
                sentence = child.revive(time.monotonic())
            except (CorruptFile, Unauthorized) as error:
                if child is self.coordinator:
                    raise
                sentence = f"{child.name} has stopped and is not started again: {error.message}"
                if isinstance(error, Unauthorized):
                    sentence += f" {self._advice(child.name)}"
                self.children.remove(child)
                if not self.children:
                    raise type(error)(f"No worker is left. {sentence}") from error
            if sentence:
                say(sentence)
                self._record()

    def last_words(self) -> str:
        """The newest line of each worker's log."""
        return "; ".join(f"{child.name}: {child.last_words(1)}" for child in self.children)

    def progress(self) -> ProgressView | None:
        """The coordinator's view of the run, or None while it does not answer; `silence` says why.

        Raises `Unauthorized` when it refuses this program's own secret.
        """
        try:
            answer = self._get("/api/progress")
            if answer.status_code == 401:
                self._token = ""
                answer = self._get("/api/progress")
            if answer.status_code == 200:
                return ProgressView.model_validate_json(answer.content)
            self.silence = f"HTTP {answer.status_code}"
        except (httpx2.HTTPError, OSError, ValidationError, KeyError, ValueError) as error:
            self.silence = type(error).__name__
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

    def _advice(self, client_id: str) -> str:
        return (
            f"Restore {self.folder.secret_file(client_id)}, or delete it: "
            "the next `bithaul up` then makes a new one."
        )

    def _get(self, path: str) -> httpx2.Response:
        if not self._token:
            try:
                secret = self.folder.read_secret(ADMIN_CLIENT)
            except (OSError, UnicodeDecodeError) as error:
                raise Unauthorized(f"A secret cannot be read. {self._advice(ADMIN_CLIENT)}") from error
            answer = httpx2.post(
                f"{self.url}/connect/token",
                data={"grant_type": "client_credentials", "scope": ADMIN_SCOPE},
                auth=(ADMIN_CLIENT, secret),
                timeout=10.0,
            )
            if answer.status_code in (400, 401, 403):
                raise Unauthorized(
                    f"The coordinator does not accept the secret of `up`. {self._advice(ADMIN_CLIENT)}"
                )
            if answer.status_code != 200:
                return answer
            self._token = str(answer.json()["access_token"])
        return httpx2.get(self.url + path, headers={"Authorization": f"Bearer {self._token}"}, timeout=10.0)


def threads_per_worker(workers: int, wanted: int | None) -> int:
    """An equal share of this machine's cores, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return wanted or max(1, cores // workers)
