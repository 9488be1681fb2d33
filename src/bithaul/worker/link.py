"""What a worker needs of its coordinator: the calls, and what their answers mean.

`Link` is what loop, pulse and transfers talk to. Over HTTP it is `client.CoordinatorClient`; the rehearsal
(`bithaul.simulation`) has one that calls the coordinator's use cases in the same process. Both decide with
`refuse` what an answer other than success means, and both wait with `patience.Patience`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from bithaul.errors import BithaulError, Forbidden, Gone, Unauthorized
from bithaul.exchange.messages import (
    HeartbeatRequest,
    HeartbeatResponse,
    LogBatch,
    Problem,
    Receipt,
    RegisterRequest,
    RegisterResponse,
    RunState,
    TaskMessage,
)

IDENTITY_IN_USE = "identity_in_use"  # another machine with the same key is alive
LATER = frozenset({408, 425, 429, 500, 502, 503, 504, 507})


class Refused(BithaulError):
    """A final answer other than success; `status` and `error_code` say which."""

    code = "refused"

    def __init__(self, status: int, message: str, *, code: str) -> None:
        super().__init__(message, code=code)
        self.status = status


class Stopped(Exception):
    """Given up because the worker was asked to stop."""


class Later(Exception):
    """No final answer, worth asking again; `after` is what the other side wants, in seconds."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class WorkAnswer:
    """GET /work: a task, or when to ask again."""

    task: TaskMessage | None
    retry_after: float
    state: RunState | None


class Download(Protocol):
    """A blob on its way: 200 (all of it), 206 (from where the range begins) or 416."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def iter_raw(self) -> Iterator[bytes]: ...


class Link(Protocol):
    """Thread-safe. Calls that matter wait for as long as the coordinator is away; see the HTTP client.

    `work` and `heartbeat` speak for the instance that this link has registered last.
    """

    def register(self, request: RegisterRequest) -> RegisterResponse: ...
    def work(self) -> WorkAnswer: ...
    def heartbeat(self, request: HeartbeatRequest, *, persist: bool = False) -> HeartbeatResponse: ...
    def logs(self, batch: LogBatch) -> None: ...
    def submit(self, task: int, fence: str, file: Path, *, moved: Callable[[int], None]) -> Receipt: ...
    def download(self, path: str, headers: dict[str, str]) -> AbstractContextManager[Download]: ...


def refuse(problem: Problem, *, client_id: str, after: float | None = None) -> NoReturn:
    """Raise what an answer other than success means."""
    if problem.status in LATER:
        raise Later(f"HTTP {problem.status}: {problem.detail}", after)
    if problem.status == 410:
        raise Gone(problem.detail)
    if problem.status == 401:
        raise Unauthorized(f"The coordinator refuses the token of {client_id!r}: {problem.detail}")
    if problem.status == 403:
        raise Forbidden(problem.detail, code=problem.code)
    raise Refused(problem.status, problem.detail, code=problem.code)
