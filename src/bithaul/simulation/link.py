"""A worker's line to the rehearsal's coordinator: the use cases of the routes, called through faults.

It implements `worker.link.Link`. Requests take time, get lost, arrive twice or damaged; the coordinator may
be away or die of one. What the answers mean is decided by the worker's own `refuse` and `Patience`, what the
requests do by the coordinator's own use cases.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bithaul.coordinator.blobs.store import BlobRef, UploadedFile
from bithaul.coordinator.commands.begin_upload import begin_upload
from bithaul.coordinator.commands.claim_task import Claim, claim_task
from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.ingest_logs import ingest_logs
from bithaul.coordinator.commands.register_worker import register_worker
from bithaul.coordinator.commands.submit_gradient import submit_gradient
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.blobs import corpus_blob, delta_blob, weights_blob
from bithaul.errors import BithaulError, Unavailable
from bithaul.exchange.frame import read_header, write_frame
from bithaul.exchange.messages import (
    HeartbeatRequest,
    HeartbeatResponse,
    LogBatch,
    Problem,
    Receipt,
    RegisterRequest,
    RegisterResponse,
    ReportHeader,
)
from bithaul.simulation.faults import Fault, Faults, Kind, Moment, Where
from bithaul.simulation.house import House
from bithaul.simulation.virtual import VirtualTime
from bithaul.worker.link import Download, Later, WorkAnswer, refuse
from bithaul.worker.outbox import payload_sha256
from bithaul.worker.patience import Patience

TIMEOUT = 60.0  # seconds without an answer
T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """What a home line can do: seconds there or back, bytes per second down and up."""

    latency: float
    down: float
    up: float


@dataclass(frozen=True)
class BlobDownload:
    status_code: int
    headers: Mapping[str, str]
    data: bytes

    def iter_raw(self) -> Iterator[bytes]:
        yield self.data


class SimulatedLink:
    """One worker's. `poison` NAN, COPY: no update leaves it whole, or none is its own work. `die` kills the
    machine; `heard` is told every receipt that reaches the worker."""

    def __init__(
        self,
        worker: str,
        house: House,
        time: VirtualTime,
        faults: Faults,
        *,
        line: Line,
        poison: Kind | None,
        patience: Patience,
        die: Callable[[float], None],
        heard: Callable[[str, Receipt], None],
    ) -> None:
        self._worker = worker
        self._house = house
        self._time = time
        self._faults = faults
        self._line = line
        self._poison = poison
        self._patience = patience
        self._die = die
        self._heard = heard
        self._instance: str | None = None
        self._cut_until = 0.0

    # -- worker.link.Link -----------------------------------------------------------------------------

    def register(self, request: RegisterRequest) -> RegisterResponse:
        answer = self._patience.persist(
            "POST /register",
            lambda: self._ask("register", lambda c: register_worker(c, self._worker, request)),
        )
        self._instance = request.instance
        return answer

    def work(self) -> WorkAnswer:
        claim: Claim = self._patience.persist(
            "GET /work",
            lambda: self._ask("work", lambda c: claim_task(c, self._worker, instance=self._instance)),
        )
        return WorkAnswer(claim.task, claim.retry_after, claim.state)

    def heartbeat(self, request: HeartbeatRequest, *, persist: bool = False) -> HeartbeatResponse:
        def ask() -> HeartbeatResponse:
            return self._ask(
                "heartbeat", lambda c: heartbeat(c, self._worker, request, instance=self._instance)
            )

        if persist:
            return self._patience.persist("POST /heartbeat", ask, urgent=True)
        return self._once(ask)

    def logs(self, batch: LogBatch) -> None:
        self._once(lambda: self._ask("logs", lambda c: ingest_logs(c, self._worker, batch)))

    def submit(self, task: int, fence: str, file: Path, *, moved: Callable[[int], None]) -> Receipt:
        def ask() -> Receipt:
            receipt = self._upload(task, fence, file.read_bytes())
            self._heard(self._worker, receipt)
            return receipt

        moved(0)
        return self._patience.persist("POST /gradient", ask, urgent=True)

    @contextmanager
    def download(self, path: str, headers: dict[str, str]) -> Iterator[Download]:
        def read(c: Coordinator) -> bytes:
            return _blob(c, path).path.read_bytes()

        data = self._once(lambda: self._ask("download", read))
        self._time.wait(len(data) / self._line.down)
        have = int(headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if have:
            yield BlobDownload(206, {"Content-Range": f"bytes {have}-/{len(data)}"}, data[have:])
        else:
            yield BlobDownload(200, {}, data)

    # -- how ------------------------------------------------------------------------------------------

    def _once(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except Later as error:
            raise Unavailable(f"The coordinator did not answer: {error}.") from error

    def _ask(self, route: str, use: Callable[[Coordinator], T], *, task: int = 0) -> T:
        """One request there and its answer back."""
        faults = self._faults.strike(Moment(Where.REQUEST, route, self._worker, task))
        self._travel(faults, late=lambda: self._house.call(use))
        answer = self._call(use)
        if _has(faults, Kind.DUPLICATE):
            answer = self._call(use)
        self._return(faults)
        return answer

    def _upload(self, task: int, fence: str, data: bytes) -> Receipt:
        """As the route does: ask first, receive, submit. Each part may be the last."""
        faults = self._faults.strike(Moment(Where.REQUEST, "submit", self._worker, task))
        data = _damaged(data, [*faults, *self._poisoned()], sent=self._house.sent)
        self._house.sent[self._worker] = data
        self._travel(faults, late=lambda: self._deliver_late(task, fence, data))
        times = 2 if _has(faults, Kind.DUPLICATE) else 1
        receipts = [self._deliver(task, fence, data, faults) for _ in range(times)]
        for receipt in receipts:
            self._heard(self._worker, receipt)
        self._return(faults)
        return receipts[-1]

    def _poisoned(self) -> list[Fault]:
        """What no update of this worker goes without."""
        others = [name for name in self._house.sent if name != self._worker]
        match self._poison:
            case Kind.NAN:
                return [Fault(Kind.NAN)]
            case Kind.COPY if others:
                return [Fault(Kind.COPY, who=others[-1])]
            case _:
                return []

    def _deliver(self, task: int, fence: str, data: bytes, faults: list[Fault]) -> Receipt:
        known = self._call(
            lambda c: begin_upload(c, self._worker, task=task, fence=fence, content_length=len(data))
        )
        if known is not None:
            return known
        generation, share = self._house.generation, _value(faults, Kind.KILL_MID_UPLOAD, 1.0)
        seconds = len(data) / self._line.up * _value(faults, Kind.SLOW, 1.0)
        with self._house.c.blobs.receive(self._house.c.ids.nonce()) as incoming:
            incoming.write(data[: int(share * len(data))])
            self._time.wait(0.5 * share * seconds)
            self._call(lambda c: c.crash_points.hit("upload.chunk"))
            self._time.wait(0.5 * share * seconds)
            for fault in faults:
                if fault.kind is Kind.KILL_MID_UPLOAD:
                    self._die(fault.back_after)
                    self._time.wait(0.0)
            if generation != self._house.generation:
                raise Later("connection reset")
            incoming.write(data[int(share * len(data)) :])
            upload: UploadedFile = incoming.finish()
        return self._call(lambda c: submit_gradient(c, self._worker, task=task, fence=fence, upload=upload))

    def _deliver_late(self, task: int, fence: str, data: bytes) -> None:
        """All at once, and the worker has long stopped listening; what it says must still be the same."""

        def deliver(c: Coordinator) -> Receipt:
            known = begin_upload(c, self._worker, task=task, fence=fence, content_length=len(data))
            if known is not None:
                return known
            with c.blobs.receive(c.ids.nonce()) as incoming:
                incoming.write(data)
                whole = incoming.finish()
            return submit_gradient(c, self._worker, task=task, fence=fence, upload=whole)

        self._heard(self._worker, self._house.call(deliver))

    def _call(self, use: Callable[[Coordinator], T]) -> T:
        try:
            return self._house.call(use)
        except BithaulError as error:
            problem = Problem(
                title=type(error).__name__,
                status=error.http_status,
                detail=error.message,
                code=error.error_code,
            )
            refuse(problem, client_id=self._worker, after=5.0 if isinstance(error, Unavailable) else None)

    def _travel(self, faults: list[Fault], *, late: Callable[[], object]) -> None:
        """There and back in one wait. Raises `Later` for what does not arrive, or only `late`."""
        if _has(faults, Kind.PARTITION):
            self._cut_until = self._time.now() + _value(faults, Kind.PARTITION, 0.0)
        if self._time.now() < self._cut_until or _has(faults, Kind.DROP_REQUEST):
            self._time.wait(TIMEOUT)
            raise Later("no connection")
        if _has(faults, Kind.REORDER):
            self._time.after(_value(faults, Kind.REORDER, 0.0), lambda: _unheard(late))
            self._time.wait(TIMEOUT)
            raise Later("no answer")
        self._time.wait(2 * self._line.latency)

    def _return(self, faults: list[Fault]) -> None:
        """The answer may get lost."""
        if _has(faults, Kind.DROP_ACK):
            self._time.wait(TIMEOUT)
            raise Later("no answer")


def _unheard(late: Callable[[], object]) -> None:
    with suppress(Later, BithaulError):
        late()


def _blob(c: Coordinator, path: str) -> BlobRef:
    match path.split("/")[1:]:
        case ["weights", version]:
            return weights_blob(c, int(version))
        case ["weights", version, "delta"]:
            return delta_blob(c, int(version))
        case ["corpus", shard, "index"]:
            return corpus_blob(c, shard, kind="index")
        case ["corpus", shard]:
            return corpus_blob(c, shard, kind="data")
    raise ValueError(f"there is no blob at {path}")


def _has(faults: list[Fault], kind: Kind) -> bool:
    return any(f.kind is kind for f in faults)


def _value(faults: list[Fault], kind: Kind, otherwise: float) -> float:
    return next((f.value for f in faults if f.kind is kind), otherwise)


def _damaged(data: bytes, faults: list[Fault], *, sent: Mapping[str, bytes]) -> bytes:
    """What really goes up; `sent` is what each worker sent last."""
    for fault in faults:
        match fault.kind:
            case Kind.CORRUPT:
                place = min(int(fault.value * len(data)), len(data) - 1)
                return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]
            case Kind.NAN:
                return _with_nan(data)
            case Kind.COPY if fault.who in sent:
                return _frame(_opened(data)[0], _opened(sent[fault.who])[1])
            case _:
                pass
    return data


def _with_nan(frame: bytes) -> bytes:
    """The same report with a first scale or value that is no number."""
    header, payload = _opened(frame)
    match header.codec:
        case "int8-block-v1" | "int4-block-v1" | "topk-2bit-v1":
            payload[12:14] = np.float16(np.nan).tobytes()
        case "bf16-v1":
            payload[8:10] = b"\xc0\x7f"
        case _:  # int8-ef-v1: its scale; fp32-v1: its first value
            payload[8:12] = np.float32(np.nan).tobytes()
    return _frame(header, payload)


def _opened(frame: bytes) -> tuple[ReportHeader, bytearray]:
    stream = io.BytesIO(frame)
    return read_header(stream), bytearray(stream.read())


def _frame(header: ReportHeader, payload: bytearray) -> bytes:
    """With the right hash for what is in it."""
    out = io.BytesIO()
    write_frame(out, header.model_copy(update={"payload_sha256": payload_sha256(payload)}), payload)
    return out.getvalue()
