"""The static files: read once, served from memory, under addresses that change with their content.

Only names found in the folder at the start exist; no part of a request becomes a path. Text is also kept
gzipped (these files hold no secrets, so compressing them tells nobody anything).
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from bithaul.errors import NotFound

PREFIX = "/static/"
_FOREVER = "public, max-age=31536000, immutable"
_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "json": "application/json",
}


@dataclass(frozen=True)
class Asset:
    content: bytes
    packed: bytes
    media_type: str
    mark: str  # first digits of the SHA-256


class Assets:
    """`address` names a file for a page; `serve` adds the routes."""

    def __init__(self) -> None:
        self._found = dict(_read(files("bithaul.coordinator.site").joinpath("static")))

    def address(self, name: str) -> str:
        """Of a file that was not installed it is the bare name, and the answer to it a 404."""
        asset = self._found.get(name)
        return PREFIX + name if asset is None else f"{PREFIX}{name}?{asset.mark}"

    def serve(self, router: APIRouter) -> None:
        @router.get(PREFIX + "{name:path}")
        async def static(request: Request, name: str) -> Response:
            asset = self._found.get(name)
            if asset is None:
                raise NotFound("There is no such file.")
            headers = {"cache-control": _FOREVER, "vary": "accept-encoding"}
            if "gzip" in request.headers.get("accept-encoding", ""):
                headers["content-encoding"] = "gzip"
                return Response(asset.packed, media_type=asset.media_type, headers=headers)
            return Response(asset.content, media_type=asset.media_type, headers=headers)


def _read(folder: Traversable, prefix: str = "") -> list[tuple[str, Asset]]:
    out: list[tuple[str, Asset]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            out += _read(entry, f"{prefix}{entry.name}/")
        elif (media_type := _TYPES.get(entry.name.rpartition(".")[2])) is not None:
            content = entry.read_bytes()
            mark = hashlib.sha256(content).hexdigest()[:12]
            out.append(
                (prefix + entry.name, Asset(content, gzip.compress(content, 9, mtime=0), media_type, mark))
            )
    return out
