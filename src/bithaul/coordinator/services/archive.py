"""The backup file: an uncompressed tar whose first member lists what follows, with sizes and SHA-256.

`bithaul-backup.json` is the list, `bithaul-backup.json.sha256` seals it, then comes every file of the run
under its path, equal ones once. `tar tvf` shows it. Reading believes nothing: only the members that the list
announces, in its order, under paths that a run can have; sizes and digests are checked while bytes pass, and
a file may be used once all of its bytes were read.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bithaul.errors import CorruptFile, InvalidInput

FORMAT_VERSION = 1
LIST = "bithaul-backup.json"
SEAL = "bithaul-backup.json.sha256"
DATABASE, SETTINGS, SPEC = "coordinator.db", "bithaul.toml", "run.json"
_PLACES = re.compile(
    r"coordinator\.db|bithaul\.toml|run\.json"
    r"|corpus/[a-z0-9][a-z0-9-]{0,63}\.(json|jsonl|bin|idx)"
    r"|blobs/[0-9a-f]{2}/[0-9a-f]{64}"
)
_BLOCK = 512
_PIECE = 1_048_576
_LONGEST_LIST = 32 * 2**20

Progress = Callable[[int], None]  # hears how many bytes are done


def may_hold(path: str) -> bool:
    """Whether a backup may hold a file of that path, relative to the run's folder."""
    return _PLACES.fullmatch(path) is not None


class BackupFile(BaseModel):
    """One file; `path` is relative to the run's folder, with forward slashes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def is_blob(self) -> bool:
        return self.path.startswith("blobs/")

    @model_validator(mode="after")
    def _place(self) -> Self:
        if not may_hold(self.path):
            raise ValueError(f"{self.path[:80]!r} is no file of a run")
        if self.is_blob and self.path != f"blobs/{self.sha256[:2]}/{self.sha256}":
            raise ValueError(f"{self.path} is not named by its SHA-256")
        return self


class BackupList(BaseModel):
    """What a backup holds, and of what moment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["bithaul-backup"] = "bithaul-backup"
    format_version: Literal[1] = 1
    software: str = Field(max_length=64)
    created_at: float = Field(ge=0, le=1e12)
    run: str = Field(max_length=64)
    version: int = Field(ge=0)  # of the newest weights
    pepper_check: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")  # tells the pepper, not more
    files: tuple[BackupFile, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({file.path for file in self.files}) != len(self.files):
            raise ValueError("a path is listed twice")
        if len({(file.sha256, file.size) for file in self.files}) != len(self.stored):
            raise ValueError("one SHA-256 has two sizes")
        return self

    @property
    def stored(self) -> tuple[BackupFile, ...]:
        """The files whose bytes the archive has; each other one equals one of these."""
        first: dict[str, BackupFile] = {}
        for file in self.files:
            first.setdefault(file.sha256, file)
        return tuple(first.values())

    @property
    def size(self) -> int:
        """Bytes of the stored files."""
        return sum(file.size for file in self.stored)


def write_archive(
    stream: BinaryIO, listed: BackupList, *, source: Callable[[BackupFile], Path], on_progress: Progress
) -> str:
    """Write everything; the SHA-256 (hex) of the whole file.

    Raises `CorruptFile` when a source is not what `listed` says, and what the system says (`OSError`).
    """
    whole = hashlib.sha256()

    def put(piece: bytes) -> None:
        stream.write(piece)
        whole.update(piece)

    text = listed.model_dump_json(indent=1).encode()
    for name, content in ((LIST, text), (SEAL, _seal(text))):
        put(_head(name, len(content), listed.created_at))
        put(content + _padding(len(content)))
    done = 0
    for file in listed.stored:
        put(_head(file.path, file.size, listed.created_at))
        digest, left = hashlib.sha256(), file.size
        path = source(file)
        with path.open("rb") as content_of:
            while piece := content_of.read(_PIECE):
                left -= len(piece)
                if left < 0:
                    break
                digest.update(piece)
                put(piece)
                done += len(piece)
                on_progress(done)
        if left or digest.hexdigest() != file.sha256:
            raise CorruptFile(f"{path} is damaged or was changed meanwhile; look at it and try again.")
        put(_padding(file.size))
    put(bytes(2 * _BLOCK))
    return whole.hexdigest()


class ArchiveReader:
    """Reads a backup from its beginning. `name` is for messages."""

    def __init__(self, stream: BinaryIO, name: Path) -> None:
        """Raises `InvalidInput` for a file that is no backup or a newer one, `CorruptFile` for a damaged."""
        self._stream = stream
        self._name = name
        first = stream.read(_BLOCK)
        try:
            head = tarfile.TarInfo.frombuf(first, "ascii", "strict")
        except (tarfile.HeaderError, ValueError):
            head = tarfile.TarInfo()
        if head.name != LIST or head.type != tarfile.REGTYPE:
            raise InvalidInput(f"{name} is no bithaul backup; name a file that `bithaul backup create` made.")
        if not 0 <= head.size <= _LONGEST_LIST:
            raise self._damaged("its list is too long")
        text = b"".join(self._content(head.size))
        if b"".join(self._content(self._next(SEAL, len(_seal(text))))) != _seal(text):
            raise self._damaged("its list was changed")
        self.listed = self._parsed(text)

    def members(self) -> Iterator[tuple[BackupFile, Iterator[bytes]]]:
        """Each stored file with its bytes in pieces. Raises `CorruptFile` once they turn out to be wrong."""
        for file in self.listed.stored:
            self._next(file.path, file.size)
            pieces = self._verified(file)
            yield file, pieces
            for _ in pieces:  # what the reader has left
                pass
        if self._stream.read(2 * _BLOCK + 1) != bytes(2 * _BLOCK):
            raise self._damaged("something else follows its end")

    def _verified(self, file: BackupFile) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for piece in self._content(file.size):
            digest.update(piece)
            yield piece
        if digest.hexdigest() != file.sha256:
            raise self._damaged(f"{file.path} does not have its SHA-256")

    def _parsed(self, text: bytes) -> BackupList:
        try:
            told = json.loads(text)
            if isinstance(told, dict) and told.get("format_version") not in (None, FORMAT_VERSION):
                raise InvalidInput(
                    f"{self._name} has the backup format {told['format_version']!r}, this bithaul reads "
                    f"{FORMAT_VERSION}; restore it with the version that made it."
                )
            return BackupList.model_validate_json(text)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise self._damaged(f"its list is not valid: {wrong['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise self._damaged("its list cannot be read") from error

    def _next(self, name: str, size: int) -> int:
        """The head of exactly this member; anything else is a damaged backup."""
        try:
            head = tarfile.TarInfo.frombuf(self._stream.read(_BLOCK), "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._damaged(f"{name} is missing from it") from error
        if (head.name, head.size, head.type) != (name, size, tarfile.REGTYPE):
            raise self._damaged(f"it holds {head.name[:80]!r} where {name} should be")
        return size

    def _content(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            piece = self._stream.read(min(_PIECE, left))
            if not piece:
                raise self._damaged("it ends early")
            left -= len(piece)
            yield piece
        if self._stream.read(len(_padding(size))) != _padding(size):
            raise self._damaged("it ends early")

    def _damaged(self, why: str) -> CorruptFile:
        return CorruptFile(f"The backup {self._name} is damaged ({why}); use another one.")


def _head(name: str, size: int, created_at: float) -> bytes:
    head = tarfile.TarInfo(name)
    head.size, head.mode, head.mtime = size, 0o600, int(created_at)
    return head.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _seal(text: bytes) -> bytes:
    return f"{hashlib.sha256(text).hexdigest()}  {LIST}\n".encode()
