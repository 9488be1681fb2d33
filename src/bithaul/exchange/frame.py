"""The update frame: a bounded JSON header in front of a codec's payload, as it lies on disk and on the wire.

`magic "BHUF" | u16 version | u32 header length | ReportHeader as JSON | payload`, little-endian. A header is
at most 64 KiB and is read before anything is allocated for the payload. The payload's own format is the
codec's.
"""

from __future__ import annotations

import hashlib
import struct
from os import SEEK_END
from typing import BinaryIO

from pydantic import ValidationError

from bithaul.errors import CorruptFile, InvalidInput
from bithaul.exchange.messages import ReportHeader

MAGIC = b"BHUF"
VERSION = 1
MAX_HEADER = 65_536
_PREFIX = struct.Struct("<4sHI")
PIECE = 1_048_576


def max_frame_size(payload_size: int) -> int:
    """The largest frame around a payload of that size: what a server may accept before reading a byte."""
    return _PREFIX.size + MAX_HEADER + payload_size


def frame_head(header: ReportHeader) -> bytes:
    """Everything in front of the payload. Raises `InvalidInput` when the header is too long."""
    text = header.model_dump_json().encode()
    if len(text) > MAX_HEADER:
        raise InvalidInput(f"The report header has {len(text)} bytes, at most {MAX_HEADER} are allowed.")
    return _PREFIX.pack(MAGIC, VERSION, len(text)) + text


def write_frame(stream: BinaryIO, header: ReportHeader, payload: bytes | bytearray | memoryview) -> int:
    """Write the frame; its length in bytes. The header must describe this very payload."""
    if header.payload_size != len(payload):
        raise InvalidInput(
            f"The header announces {header.payload_size} bytes of payload, there are {len(payload)}."
        )
    head = frame_head(header)
    stream.write(head)
    view = memoryview(payload)
    for i in range(0, len(view), PIECE):
        stream.write(view[i : i + PIECE])
    return len(head) + len(view)


def read_header(stream: BinaryIO) -> ReportHeader:
    """The header; leaves the stream at the payload's first byte.

    Raises `CorruptFile` for a short frame, wrong magic or version; `InvalidInput` for a header that is too
    long or does not validate. Reads at most 64 KiB and never trusts a length before bounding it.
    """
    prefix = stream.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise CorruptFile(f"The update ends after {len(prefix)} bytes, inside its head.", code="frame_short")
    magic, version, length = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise CorruptFile(f"The update begins with {magic!r}, not {MAGIC!r}.", code="frame_magic")
    if version != VERSION:
        raise CorruptFile(
            f"The update has frame version {version}, this side knows {VERSION}.", code="frame_version"
        )
    if length > MAX_HEADER:
        raise InvalidInput(
            f"The report header announces {length} bytes, at most {MAX_HEADER}.", code="frame_header"
        )
    text = stream.read(length)
    if len(text) < length:
        raise CorruptFile(
            f"The update ends {length - len(text)} bytes early, in its header.", code="frame_short"
        )
    try:
        return ReportHeader.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'header'}: {e['msg']}" for e in error.errors()
        )
        raise InvalidInput(
            f"The report header is not valid: {problems[:500]}.", code="frame_header"
        ) from error


def verify_payload(stream: BinaryIO, header: ReportHeader) -> None:
    """Check length and SHA-256 of the payload from the current position to the end, and come back to it.

    Raises `CorruptFile`. Memory stays at one piece of 1 MiB.
    """
    start = stream.tell()
    length = stream.seek(0, SEEK_END) - start
    stream.seek(start)
    if length != header.payload_size:
        raise CorruptFile(
            f"The update carries {length} bytes of payload, its header announces {header.payload_size}.",
            code="frame_length",
        )
    digest = hashlib.sha256()
    while piece := stream.read(PIECE):
        digest.update(piece)
    stream.seek(start)
    if digest.hexdigest() != header.payload_sha256:
        raise CorruptFile(
            "The payload's SHA-256 is not the one in its header; send it again.", code="frame_sha256"
        )
