"""Loaded by schemathesis's process (SCHEMATHESIS_HOOKS): how it sends what it does not know."""

from __future__ import annotations

import schemathesis


@schemathesis.serializer("application/offset+octet-stream")
def bytes_of_an_upload(_context: object, value: object) -> bytes:
    """A piece of a resumable upload: whatever was made up, as bytes."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
