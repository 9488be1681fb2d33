"""GET and HEAD of immutable blobs: weights, corpus shards and their indexes, with Range and strong ETags.

Memory stays at one piece of 1 MiB per transfer, whatever the size. Ids are looked up in the database; no
part of a request ever becomes a path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bithaul.coordinator.api import ranges
from bithaul.coordinator.api.guard import WorkerRoute
from bithaul.coordinator.blobs.store import BlobRef
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.blobs import corpus_blob, current_version, delta_blob, weights_blob
from bithaul.errors import NotFound, Unavailable
from bithaul.exchange.messages import Name, Sha256

_FOREVER = "private, max-age=31536000, immutable"
_MEDIA_TYPE = "application/octet-stream"
_RESPONSES: dict[int | str, dict[str, object]] = {
    200: {"content": {_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The requested ranges"},
    304: {"description": "Not modified"},
    416: {"description": "Range not satisfiable"},
}

Version = Annotated[str, Path(pattern=r"^[1-9][0-9]{0,15}$")]  # int would also take "1.0"
Shard = Annotated[Name, Path()]


class CurrentWeights(BaseModel):
    version: int
    sha256: Sha256
    size: int


class BlobResponse(FileResponse):
    """A file that never changes. `ETag` is its SHA-256; pieces are 1 MiB; Range is parsed by `ranges`."""

    chunk_size = 1 << 20

    def __init__(self, ref: BlobRef, stat_result: os.stat_result) -> None:
        headers = {"etag": etag(ref), "cache-control": _FOREVER}
        super().__init__(ref.path, headers=headers, media_type=_MEDIA_TYPE, stat_result=stat_result)
        del self.headers["last-modified"]  # the ETag is the only validator

    def _should_use_range(self, http_if_range: str) -> bool:
        return http_if_range == self.headers["etag"]

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        return ranges.parse(http_range, file_size) or []


def etag(ref: BlobRef) -> str:
    return f'"{ref.sha256}"'


def blob_routes(c: Coordinator) -> APIRouter:
    """GET and HEAD /weights/{version} and /delta, /corpus/{shard} and /index; GET /weights/current."""
    router = APIRouter(route_class=WorkerRoute, tags=["blobs"])

    @router.get("/weights/current")
    def weights_current() -> CurrentWeights:
        """The newest announced version."""
        current = current_version(c)
        return CurrentWeights(version=current.version, sha256=current.sha256, size=current.size)

    @router.head("/weights/{version}", include_in_schema=False)
    @router.get("/weights/{version}", response_class=Response, responses=_RESPONSES)
    async def weights(request: Request, version: Version) -> Response:
        """The weights of one version."""
        return await answer_blob(request, lambda: weights_blob(c, int(version)))

    @router.head("/weights/{version}/delta", include_in_schema=False)
    @router.get("/weights/{version}/delta", response_class=Response, responses=_RESPONSES)
    async def weights_delta(request: Request, version: Version) -> Response:
        """The way to one version from the one before."""
        return await answer_blob(request, lambda: delta_blob(c, int(version)))

    @router.head("/corpus/{shard}", include_in_schema=False)
    @router.get("/corpus/{shard}", response_class=Response, responses=_RESPONSES)
    async def corpus(request: Request, shard: Shard) -> Response:
        """Token ids of one shard."""
        return await answer_blob(request, lambda: corpus_blob(c, shard, kind="data"))

    @router.head("/corpus/{shard}/index", include_in_schema=False)
    @router.get("/corpus/{shard}/index", response_class=Response, responses=_RESPONSES)
    async def corpus_index(request: Request, shard: Shard) -> Response:
        """Example boundaries of one shard."""
        return await answer_blob(request, lambda: corpus_blob(c, shard, kind="index"))

    return router


async def answer_blob(request: Request, find: Callable[[], BlobRef]) -> Response:
    """The blob that `find` names, whole or in ranges, or 304. Raises `NotFound`, `Unavailable`."""
    ref, stat_result = await run_in_threadpool(_look_up, find)
    if _not_modified(request, etag(ref)):
        return Response(status_code=304, headers={"etag": etag(ref), "cache-control": _FOREVER})
    response = BlobResponse(ref, stat_result)
    wanted = request.headers.get("range")
    condition = request.headers.get("if-range")
    if wanted is not None and condition in (None, etag(ref)):
        ranges.parse(wanted, ref.size)  # an unsatisfiable range is a problem+json, not the framework's text
    return response


def _look_up(find: Callable[[], BlobRef]) -> tuple[BlobRef, os.stat_result]:
    ref = find()
    try:
        stat_result = os.lstat(ref.path)
    except FileNotFoundError as error:
        raise NotFound("This blob is no longer kept; ask for the current version.") from error
    if not stat.S_ISREG(stat_result.st_mode) or stat_result.st_size != ref.size:
        raise Unavailable(
            "This blob is damaged on the coordinator; its operator must restore it.", code="bad_blob"
        )
    return ref, stat_result


def _not_modified(request: Request, tag: str) -> bool:
    values = [value.strip() for value in ",".join(request.headers.getlist("if-none-match")).split(",")]
    return "*" in values or tag in [value.removeprefix("W/") for value in values]
