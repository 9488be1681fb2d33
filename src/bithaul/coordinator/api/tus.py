"""Resumable upload of an update: tus 1.0.0 over `blobs.uploads`. All header handling of it is here.

POST /gradient with `Tus-Resumable` begins, PATCH appends, HEAD tells the offset, DELETE gives up. The last
byte submits the update, whoever comes back for the receipt; POST again with the same task and fence answers
with the receipt, or with the upload that runs. Extensions: creation, creation-with-upload, checksum,
expiration, termination.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from bithaul.coordinator.api.behind import Behind, pieces
from bithaul.coordinator.api.desk import Desk
from bithaul.coordinator.api.guard import Caller, WorkerRoute, bearer
from bithaul.coordinator.api.problems import BadRequest, LengthRequired, UnsupportedMediaType
from bithaul.coordinator.blobs.uploads import Upload, Writer
from bithaul.coordinator.commands.begin_upload import largest_update, resume_upload
from bithaul.coordinator.commands.submit_gradient import submit_gradient
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.identity.provider import Identity
from bithaul.errors import BithaulError, InvalidInput, Unauthorized
from bithaul.exchange.messages import Fence, Receipt, Verdict

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
ALGORITHMS = ("sha1", "sha256")
KEPT_SECONDS = 86_400.0  # since the last byte
UPLOADS_PATH = "/gradient/uploads"
OFFSET_MEDIA_TYPE = "application/offset+octet-stream"
_BODY = {
    "requestBody": {
        "required": True,
        "content": {OFFSET_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


class WrongProtocol(BithaulError):
    code = "tus_version"
    http_status = 412


class ChecksumMismatch(BithaulError):
    code = "checksum_mismatch"
    http_status = 460


class Tus:
    """The routes' work. `writers` limits threads that write to disk."""

    def __init__(self, c: Coordinator, identity: Identity, writers: CapacityLimiter, desk: Desk) -> None:
        self._c, self._identity, self._writers, self._desk = c, identity, writers, desk

    async def options(self) -> Response:
        most = await self._desk.run(largest_update, self._c)
        headers = {
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        }
        return _answer(204, headers | ({"Tus-Max-Size": str(most)} if most is not None else {}))

    async def create(self, request: Request, worker: str) -> Response:
        """POST: the receipt (200, 422), or 201 with the upload's Location and how much of it is here."""
        _require_version(request)
        length, (task, fence, sha256) = _length(request), _metadata(request)
        found = await self._desk.run(
            resume_upload, self._c, worker, task=task, fence=fence, length=length, sha256=sha256
        )
        if isinstance(found, Receipt):
            return _receipt(found)
        if found.busy:
            return _answer(202, {"Retry-After": "1"})
        if found.complete:
            return _receipt(await self._submit(request, found))
        offset = found.offset
        if request.headers.get("content-type", "").partition(";")[0].strip() == OFFSET_MEDIA_TYPE:
            offset = await self._append(request, found, offset=found.offset)
        return _answer(
            201, {"Location": f"{UPLOADS_PATH}/{found.id}", "Upload-Offset": str(offset), **self._expires()}
        )

    async def head(self, request: Request, worker: str, name: str) -> Response:
        _require_version(request)
        upload = await self._desk.run(self._c.uploads.get, name, worker=worker)
        headers = {"Upload-Offset": str(upload.offset), "Upload-Length": str(upload.info.length)}
        return _answer(200, headers | self._expires())

    async def patch(self, request: Request, worker: str, name: str) -> Response:
        _require_version(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != OFFSET_MEDIA_TYPE:
            raise UnsupportedMediaType(f"Send the bytes as {OFFSET_MEDIA_TYPE}.")
        offset = _number(request, "upload-offset")
        upload = await self._desk.run(self._c.uploads.get, name, worker=worker)
        offset = await self._append(request, upload, offset=offset)
        return _answer(204, {"Upload-Offset": str(offset), **self._expires()})

    async def delete(self, request: Request, worker: str, name: str) -> Response:
        _require_version(request)
        await self._desk.run(self._c.uploads.delete, name, worker=worker)
        return _answer(204, {})

    async def overridden(self, request: Request, worker: str, name: str) -> Response:
        """POST with X-HTTP-Method-Override, for proxies that let nothing else through."""
        methods: dict[str, Callable[[Request, str, str], Awaitable[Response]]] = {
            "PATCH": self.patch,
            "DELETE": self.delete,
            "HEAD": self.head,
        }
        method = methods.get(request.headers.get("x-http-method-override", "").upper())
        if method is None:
            raise BadRequest("Send X-HTTP-Method-Override: PATCH, DELETE or HEAD, or use that method.")
        return await method(request, worker, name)

    async def _append(self, request: Request, upload: Upload, *, offset: int) -> int:
        """The new offset. Whatever arrived before a cut is kept."""
        checksum = _checksum(request)
        with self._c.uploads.writer(upload.id, worker=upload.info.worker, offset=offset) as writer:
            whole = await self._receive(request, writer)
            if whole and checksum is not None and not await self._in_thread(writer.matches, *checksum):
                raise ChecksumMismatch("These bytes do not have the Upload-Checksum; send them again.")
            end = writer.offset
        self._c.crash_points.hit("upload.chunk")
        if end == upload.info.length:
            try:
                await self._submit(request, upload)
            except Unauthorized:
                raise  # rotated meanwhile
            except BithaulError:
                pass  # the bytes are here; who asks for the receipt hears what is wrong
        return end

    async def _receive(self, request: Request, writer: Writer) -> bool:
        """Whether the body came to its end; what came before a cut stays, and nobody hears the answer."""
        async with Behind(self._writers) as behind:
            try:
                async for piece in pieces(request.stream()):
                    await behind.do(writer.write, piece)
            except ClientDisconnect:
                return False
        return True

    async def _submit(self, request: Request, upload: Upload) -> Receipt:
        c, info = self._c, upload.info

        def submit() -> Receipt:
            self._identity.principal(bearer(request))  # the credential may have been rotated meanwhile
            with c.uploads.taking(upload.id, worker=info.worker) as whole:
                return submit_gradient(
                    c,
                    info.worker,
                    task=info.task,
                    fence=info.fence,
                    upload=whole,
                    still_allowed=lambda rows: self._identity.principal(bearer(request), connection=rows),
                )

        receipt: Receipt = await self._in_thread(submit)
        return receipt

    async def _in_thread(self, call: Callable[..., Any], *given: object) -> Any:
        return await anyio.to_thread.run_sync(call, *given, limiter=self._writers)

    def _expires(self) -> dict[str, str]:
        until = datetime.fromtimestamp(self._c.clock.now() + KEPT_SECONDS, UTC)
        return {"Upload-Expires": format_datetime(until, usegmt=True)}


def tus_routes(tus: Tus) -> APIRouter:
    """Everything but POST /gradient itself, which `gradient` hands over."""
    router = APIRouter(route_class=WorkerRoute, tags=["work"])
    path = UPLOADS_PATH + "/{upload}"
    gone: dict[int | str, dict[str, Any]] = {404: {"description": "No such upload"}}

    @router.options("/gradient", status_code=204)
    async def options(_: Caller) -> Response:
        """What of tus this coordinator speaks, and the largest update."""
        return await tus.options()

    @router.head(path, responses=gone)
    async def head(request: Request, caller: Caller, upload: str) -> Response:
        """How many bytes of an upload are here."""
        return await tus.head(request, caller.client_id, upload)

    @router.patch(path, status_code=204, responses=gone, openapi_extra=_BODY)
    async def patch(request: Request, caller: Caller, upload: str) -> Response:
        """Append bytes; the last one submits the update."""
        return await tus.patch(request, caller.client_id, upload)

    @router.delete(path, status_code=204, responses=gone)
    async def delete(request: Request, caller: Caller, upload: str) -> Response:
        """Give an upload up."""
        return await tus.delete(request, caller.client_id, upload)

    @router.post(path, status_code=204, responses=gone)
    async def override(request: Request, caller: Caller, upload: str) -> Response:
        """PATCH, DELETE or HEAD by X-HTTP-Method-Override."""
        return await tus.overridden(request, caller.client_id, upload)

    return router


def wanted(request: Request) -> bool:
    """Whether a POST /gradient begins a resumable upload."""
    return "tus-resumable" in request.headers


def _answer(status: int, headers: dict[str, str]) -> Response:
    return Response(
        status_code=status, headers={"Tus-Resumable": VERSION, "Cache-Control": "no-store", **headers}
    )


def _receipt(receipt: Receipt) -> Response:
    status = 422 if receipt.verdict is Verdict.REJECTED else 200
    return Response(
        receipt.model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers={"Tus-Resumable": VERSION},
    )


def _require_version(request: Request) -> None:
    if request.headers.get("tus-resumable") != VERSION:
        raise WrongProtocol(f"Send Tus-Resumable: {VERSION}; no other version is spoken here.")


def _number(request: Request, name: str) -> int:
    value = request.headers.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise BadRequest(f"The header {name.title()} is not a number.")
    return int(value)


def _length(request: Request) -> int:
    if "upload-length" not in request.headers:
        raise LengthRequired("Send the update's size as Upload-Length; deferred lengths are not supported.")
    length = _number(request, "upload-length")
    if length == 0:
        raise InvalidInput("An update is not empty.", code="wrong_length")
    return length


_fence: TypeAdapter[str] = TypeAdapter(Fence)


def _metadata(request: Request) -> tuple[int, str, str | None]:
    """Task, fence and SHA-256 (hex, may be absent) of the Upload-Metadata header."""
    found: dict[str, str] = {}
    try:
        for pair in request.headers.get("upload-metadata", "").split(","):
            key, _, value = pair.strip().partition(" ")
            if key in found:
                raise ValueError("a key is repeated")
            found[key] = base64.b64decode(value, validate=True).decode("ascii")
        task = int(found["task"]) if found["task"].isdigit() and len(found["task"]) < 16 else 0
        fence = _fence.validate_python(found["fence"])
    except (KeyError, ValueError, UnicodeDecodeError, ValidationError, binascii.Error) as error:
        raise BadRequest(
            "Upload-Metadata must hold task and fence, each followed by its value in base64.",
            code="upload_metadata",
        ) from error
    sha256 = found.get("sha256")
    if task < 1 or (sha256 is not None and (len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"))):
        raise BadRequest(
            "In Upload-Metadata task must be a positive number and sha256 64 hex digits.",
            code="upload_metadata",
        )
    return task, fence, sha256


def _checksum(request: Request) -> tuple[str, bytes] | None:
    header = request.headers.get("upload-checksum")
    if header is None:
        return None
    algorithm, _, value = header.partition(" ")
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError as error:  # also for letters beyond ASCII
        raise BadRequest("The digest in Upload-Checksum is not base64.") from error
    if algorithm not in ALGORITHMS:
        raise BadRequest(f"Upload-Checksum knows {', '.join(ALGORITHMS)}.", code="checksum_algorithm")
    return algorithm, digest
