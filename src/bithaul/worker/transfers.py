"""Fetches weights and corpus shards: resumable, verified, kept on disk under their SHA-256.

What arrived before a cut stays in a `.part` file and the next try asks for the rest. A slow connection gets
others beside it (`segments`). A file is believed only
after its SHA-256 was computed once in this process; a damaged one is deleted and fetched again. The newest
two weight files are kept, shards for as long as the state folder lives.

Where deltas lead from a kept weight file to the wanted one, that is rebuilt from them and must have the very
SHA-256 of the whole file; whatever goes wrong on the way, the whole file is fetched.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import httpx2

from bithaul.errors import CorruptFile, OutOfDisk, Unavailable
from bithaul.exchange.deltas import apply_delta
from bithaul.exchange.messages import DeltaRef
from bithaul.exchange.pieces import VectorLayout
from bithaul.exchange.weights import WeightFormat
from bithaul.worker.backoff import Backoff
from bithaul.worker.link import Link, Refused, Stopped
from bithaul.worker.segments import Segments, worth_it
from bithaul.worker.stop import Stop

KEPT_WEIGHTS = 2
PIECE = 1_048_576
_DAMAGED_TRIES = 3


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Way:
    """`deltas` lead, one after the other, to the version that is wanted."""

    deltas: Sequence[DeltaRef]
    layout: VectorLayout
    form: WeightFormat


class Transfers:
    """The download cache in `folder`. `moved` hears the size of each piece as it arrives, `broken` why a
    version could not be rebuilt from deltas."""

    def __init__(
        self,
        client: Link,
        folder: Path,
        *,
        stop: Stop,
        moved: Callable[[int], None],
        broken: Callable[[str], None] = lambda _: None,
        backoff: Backoff | None = None,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._weights = folder / "weights"
        self._corpus = folder / "corpus"
        self._stop = stop
        self._moved = moved
        self._broken = broken
        self._backoff = backoff or Backoff()
        self._jitter = jitter
        self._clock = clock
        self._verified: set[Path] = set()
        for place in (self._weights, self._corpus):
            place.mkdir(parents=True, exist_ok=True)

    def weights(self, version: int, *, sha256: str, size: int, way: Way | None = None) -> Path:
        """The weight file of a version, by `way` if that starts from a kept one. Raises as `fetch`."""
        target = self._weight_file(sha256)
        if way is not None and not target.is_file():
            try:
                self._rebuild(way, sha256)
            except (Refused, CorruptFile) as error:  # retired meanwhile, or damaged
                self._broken(f"{error.error_code}: {error.message}")
        path = self.fetch(f"/weights/{version}", target, sha256=sha256, size=size)
        path.touch()
        newest_first = sorted(self._weights.glob("*.bgwt"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for old in newest_first[KEPT_WEIGHTS:]:
            if old != path:  # a file system's clock may be too coarse to tell which is the newest
                self._forget(old)
        for leftover in (*self._weights.glob("*.part"), *self._weights.glob("*.bgwd")):
            leftover.unlink(missing_ok=True)
        return path

    def _rebuild(self, way: Way, sha256: str) -> None:
        """The weight file with that SHA-256 by the shortest part of the way that starts from a kept one."""
        ends = [*(delta.base_sha256 for delta in way.deltas[1:]), sha256]
        steps = list(zip(way.deltas, ends, strict=True))
        kept = [i for i, (delta, _) in enumerate(steps) if self._weight_file(delta.base_sha256).is_file()]
        for delta, end in steps[kept[-1] :] if kept else ():
            path, name = f"/weights/{delta.version}/delta", f"{delta.sha256}.bgwd"
            file = self.fetch(path, self._weights / name, sha256=delta.sha256, size=delta.size)
            self._go(way, delta, file, end=end)
            self._forget(file)

    def _go(self, way: Way, delta: DeltaRef, file: Path, *, end: str) -> None:
        """One delta further. Raises `CorruptFile` when that gives a file of another SHA-256 than `end`."""
        base, target = self._weight_file(delta.base_sha256), self._weight_file(end)
        part = target.with_suffix(".part")
        try:
            with part.open("wb") as out:
                found = apply_delta(
                    base, file, out, base_sha256=delta.base_sha256, layout=way.layout, form=way.form
                )
        except OSError as error:
            raise OutOfDisk(f"{target.name} cannot be stored in {target.parent}: {error}.") from error
        if found != end:
            self._forget(base)  # damaged on this disk, else this machine computes differently
            raise CorruptFile(
                f"Version {delta.version} was rebuilt with the SHA-256 {found[:12]}..., not {end[:12]}....",
                code="delta_mismatch",
            )
        part.replace(target)
        self._verified.add(target)

    def _weight_file(self, sha256: str) -> Path:
        return self._weights / f"{sha256}.bgwt"

    def shard(self, name: str, *, sha256: str, size: int) -> Path:
        """The token file of a shard. Raises as `fetch`."""
        return self.fetch(f"/corpus/{name}", self._corpus / f"{sha256}.bin", sha256=sha256, size=size)

    def shard_index(self, name: str, *, sha256: str, size: int) -> Path:
        """The boundary index of a shard. Raises as `fetch`."""
        return self.fetch(f"/corpus/{name}/index", self._corpus / f"{sha256}.idx", sha256=sha256, size=size)

    def fetch(self, path: str, target: Path, *, sha256: str, size: int) -> Path:
        """`target`, verified; from the cache or from the coordinator, for as long as it takes.

        Raises `CorruptFile` when three complete downloads do not match, `Refused` when the coordinator says
        no (404), `OutOfDisk`, and `Stopped` when the worker is asked to stop.
        """
        if target.is_file():
            if target in self._verified or _sha256(target) == sha256:
                self._verified.add(target)
                return target
            self._forget(target)
        part = target.with_suffix(target.suffix + ".part")
        damaged = attempt = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                self._continue(path, part, sha256=sha256, size=size)
            except (Unavailable, httpx2.TransportError) as error:
                if part.exists() and part.stat().st_size > before:
                    attempt = 0  # progress: the line is bad, not dead
                if self._stop.wait(self._backoff.wait(attempt, random=self._jitter())):
                    raise Stopped(f"{path} was not complete") from error
                attempt += 1
            except CorruptFile:
                part.unlink(missing_ok=True)
                damaged += 1
                if damaged == _DAMAGED_TRIES:
                    raise
            except OSError as error:
                raise OutOfDisk(f"{target.name} cannot be stored in {target.parent}: {error}.") from error
            else:
                part.replace(target)  # not synced: after a power cut the SHA-256 tells
                self._verified.add(target)
                return target

    def _continue(self, path: str, part: Path, *, sha256: str, size: int) -> None:
        """Fetch what `part` lacks and check the whole; raises `CorruptFile` if it does not match."""
        part.touch()
        with part.open("r+b") as file:
            digest: Digest = hashlib.sha256()
            while piece := file.read(PIECE):
                digest.update(piece)
            have = file.tell()
            if have < size:
                have, digest = self._stream(path, file, digest, have, sha256=sha256, size=size)
        if have < size:
            raise Unavailable(f"{path} ended {size - have} bytes early.")
        if have > size or digest.hexdigest() != sha256:
            raise CorruptFile(f"{path} does not have the SHA-256 {sha256[:12]}... that was announced.")

    def _stream(
        self, path: str, file: BinaryIO, digest: Digest, have: int, *, sha256: str, size: int
    ) -> tuple[int, Digest]:
        """One connection from `have` on, several if that is slow: how far it is, and the digest so far."""
        same = {"If-Range": f'"{sha256}"', "Accept-Encoding": "identity"}
        headers = {**same, "Range": f"bytes={have}-"} if have else {"Accept-Encoding": "identity"}
        began, first = self._clock(), have
        with self._client.download(path, headers) as response:
            if response.status_code == 416:
                raise CorruptFile(f"{path} has another length than announced.")
            if have and response.status_code == 200:
                file.truncate(0)
                file.seek(0)
                digest, have, first = hashlib.sha256(), 0, 0
            elif have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise CorruptFile(f"{path} was continued at the wrong place.")
            for piece in response.iter_raw():  # no chunk size: it would drop up to a chunk at a cut
                have += len(piece)
                if have > size:
                    raise CorruptFile(f"{path} is longer than the {size} bytes announced.")
                file.write(piece)
                digest.update(piece)
                self._moved(len(piece))
                if self._stop.requested:
                    raise Stopped(f"{path} was not complete")
                if worth_it(left=size - have, got=have - first, seconds=self._clock() - began):
                    break
            else:
                return have, digest
        segments = Segments(
            self._client,
            path,
            file,
            start=have,
            size=size,
            headers=same,
            stop=self._stop,
            moved=self._moved,
        )
        segments.run()
        file.seek(have)
        while more := file.read(PIECE):
            digest.update(more)
        return size, digest

    def _forget(self, path: Path) -> None:
        self._verified.discard(path)
        try:
            path.unlink(missing_ok=True)
        except PermissionError:
            path.touch()  # Windows: still mapped; it goes next time


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
