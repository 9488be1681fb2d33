"""The project's errors: one hierarchy, a stable code, a sentence that says what to do next.

An error a person or a peer can cause is a `BithaulError`; everything else is a defect and may be a
traceback. `code` is public: the REST API sends it in problem+json, the CLI prints it with `--json`.
`http_status` and `exit_code` are the one table that maps an error to an answer at either door.
"""

from __future__ import annotations

from typing import ClassVar


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
