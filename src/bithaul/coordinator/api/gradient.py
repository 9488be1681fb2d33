"""POST /gradient: stream one update to disk, then submit it; memory stays at one piece, whatever the size.

Everything that can refuse an upload is asked before the first byte of the body is read: token, scope, query,
encoding, length, lease, free disk. A connection that breaks leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Query, Response
from starlette.requests import ClientDisconnect, Request

from bithaul.coordinator.api.behind import Behind, pieces
from bithaul.coordinator.api.desk import Desk
from bithaul.coordinator.api.guard import Caller, WorkerRoute, bearer
from bithaul.coordinator.api.problems import BadRequest, LengthRequired, UnsupportedMediaType
from bithaul.coordinator.api.tus import Tus, tus_routes, wanted
from bithaul.coordinator.blobs.store import Incoming
from bithaul.coordinator.commands.begin_upload import begin_upload
from bithaul.coordinator.commands.submit_gradient import submit_gradient
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.provider import Identity
from bithaul.errors import InvalidInput, Unavailable
from bithaul.exchange.messages import Fence, Receipt, Verdict

WRITERS = 4
PER_WORKER = 4  # whole updates that one worker sends at the same time; one is usual
_RESPONSES: dict[int | str, dict[str, Any]] = {
    201: {"description": "A resumable upload runs at Location, as far as Upload-Offset"},
    202: {"description": "All bytes are here and being judged; ask again"},
}
_BODY = {
    "requestBody": {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

TaskId = Annotated[int | None, Query(ge=1, le=2**53)]
FenceId = Annotated[Fence | None, Query()]


def gradient_routes(c: Coordinator, identity: Identity, desk: Desk) -> APIRouter:
    router = APIRouter(route_class=WorkerRoute, tags=["work"])
    writers = CapacityLimiter(WRITERS)  # apart from the default threads: a slow disk must not stop heartbeats
    resumable = Tus(c, identity, writers, desk)
    running = Running()
    router.include_router(tus_routes(resumable))

    @router.post("/gradient", response_model=Receipt, responses=_RESPONSES, openapi_extra=_BODY)
    async def gradient(
        request: Request, response: Response, caller: Caller, task: TaskId = None, fence: FenceId = None
    ) -> Receipt | Response:
        """Deliver the result of a leased task, or begin to; asking again returns the stored receipt."""
        if wanted(request):
            return await resumable.create(request, caller.client_id)
        if task is None or fence is None:
            raise InvalidInput(
                "Name the task and the fence: /gradient?task=T&fence=F.", code="invalid_request"
            )
        length = _length(request)
        receipt = await desk.run(
            begin_upload, c, caller.client_id, task=task, fence=fence, content_length=length
        )
        if receipt is None:
            with running.one(caller.client_id), c.blobs.receive(c.ids.nonce()) as incoming:
                try:
                    last = await _receive(request, incoming, length=length, writers=writers)
                except ClientDisconnect as error:
                    raise Unavailable(
                        "The upload broke off; send it again.", code="upload_interrupted"
                    ) from error

                def submit() -> Receipt:
                    incoming.write(last)
                    identity.principal(bearer(request))  # the credential may have been rotated meanwhile
                    upload = incoming.finish()
                    return submit_gradient(
                        c,
                        caller.client_id,
                        task=task,
                        fence=fence,
                        upload=upload,
                        still_allowed=lambda rows: identity.principal(bearer(request), connection=rows),
                    )

                receipt = await anyio.to_thread.run_sync(submit, limiter=writers)
        response.status_code = 422 if receipt.verdict is Verdict.REJECTED else 200
        return receipt

    return router


class Running:
    """How many updates each worker sends at this moment. On the event loop only."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}

    @contextmanager
    def one(self, worker: str) -> Iterator[None]:
        """Raises `Unavailable`: every one that is open may take the disk that others need."""
        if self._of.get(worker, 0) >= PER_WORKER:
            raise Unavailable("Updates of this worker are being received already.", code="uploads_running")
        self._of[worker] = self._of.get(worker, 0) + 1
        try:
            yield
        finally:
            self._of[worker] -= 1
            if not self._of[worker]:
                del self._of[worker]


def _length(request: Request) -> int:
    """The declared length of an acceptable body."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/octet-stream":
        raise UnsupportedMediaType("Send the update as application/octet-stream.")
    declared = request.headers.get("content-length", "")
    if not declared:
        raise LengthRequired("Send the update with a Content-Length.")
    if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
        raise BadRequest("The Content-Length is not a number.")
    return int(declared)


async def _receive(
    request: Request, incoming: Incoming, *, length: int, writers: CapacityLimiter
) -> bytearray:
    """Write the body piece by piece while it comes; exactly `length` bytes or an error.

    Returns what is left to write, so that a small update costs one call in all.
    """
    received = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal received
        async for part in request.stream():
            received += len(part)
            if received > length:
                raise BadRequest("The body is longer than its Content-Length.", code="wrong_length")
            yield part

    last = bytearray()
    async with Behind(writers) as behind:
        async for piece in pieces(counted()):
            if last:
                await behind.do(incoming.write, last)
            last = piece
    if received != length:
        raise BadRequest("The body is shorter than its Content-Length.", code="wrong_length")
    return last
