"""The project's errors: one hierarchy, a stable code, a sentence that says what to do next.

An error a person or a peer can cause is a `BithaulError`; everything else is a defect and may be a
traceback. `code` is public: the REST API sends it in problem+json, the CLI prints it with `--json`.
`http_status` and `exit_code` are the one table that maps an error to an answer at either door. An
`OSError` is the machine's answer, not a defect: `of_system` says which error of ours it is.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from os import fsdecode
from pathlib import Path
from typing import ClassVar

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WRONG_PLACE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


class BithaulError(Exception):
    """Base of all expected errors. The message is one sentence that says what to do."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 400
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = code or self.code


class InvalidInput(BithaulError):
    """Something a person or a peer sent is not acceptable; nothing was changed."""

    code = "invalid_input"
    http_status = 422
    exit_code = 2


class InvalidConfig(InvalidInput):
    code = "invalid_config"


class UnknownName(InvalidInput):
    """A name (preset, codec, merge rule, ...) that is not known; the message lists the known ones."""

    code = "unknown_name"


class InvalidData(InvalidInput):
    """A corpus file or line is malformed; the message names file and line."""

    code = "invalid_data"


class CorruptFile(BithaulError):
    """Bytes on disk or on the wire do not match their length, format or SHA-256."""

    code = "corrupt_file"
    http_status = 422
    exit_code = 3


class LayoutMismatch(BithaulError):
    """Weights, updates or a checkpoint belong to another parameter layout."""

    code = "layout_mismatch"
    http_status = 422
    exit_code = 3


class NotFound(BithaulError):
    code = "not_found"
    http_status = 404
    exit_code = 4


class Conflict(BithaulError):
    code = "conflict"
    http_status = 409
    exit_code = 5


class Gone(BithaulError):
    """The worker is not registered (any more); it must POST /register again."""

    code = "not_registered"
    http_status = 410
    exit_code = 5


class Unauthorized(BithaulError):
    code = "unauthorized"
    http_status = 401
    exit_code = 6


class Forbidden(BithaulError):
    code = "forbidden"
    http_status = 403
    exit_code = 6


class TooLarge(BithaulError):
    code = "too_large"
    http_status = 413
    exit_code = 2


class OutOfDisk(BithaulError):
    """The disk is full; nothing partial was kept."""

    code = "out_of_disk"
    http_status = 507
    exit_code = 7


class Unavailable(BithaulError):
    """The other side cannot answer now; trying again later is right."""

    code = "unavailable"
    http_status = 503
    exit_code = 8


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While `path` is written: an `OSError` becomes the `BithaulError` that names it."""
    try:
        yield
    except OSError as error:
        raise of_system(error, writing=path) from error


def of_system(error: OSError, *, writing: Path | None = None) -> BithaulError:
    """`OutOfDisk` for a full disk, `InvalidInput` for a path that cannot be used as asked, else the base."""
    reason = error.strerror or str(error) or type(error).__name__
    place = "" if error.filename is None else fsdecode(error.filename)
    if error.errno in _FULL:
        what = f"{writing or place or 'The output'} cannot be written"
        return OutOfDisk(f"{what}: the disk is full ({reason}); free some space and try again.")
    kind = InvalidInput if isinstance(error, _WRONG_PLACE) else BithaulError
    if writing is not None:
        where = f" ({place})" if place and Path(place).parent != writing.parent else ""
        return kind(f"{writing} cannot be written: {reason}{where}; name another place.")
    advice = "look at that file or folder, or name another" if place else "look at this machine and try again"
    return kind(f"{place or 'The system'}: {reason}; {advice}.")
