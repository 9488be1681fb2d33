"""The update frame: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.errors import CorruptFile, InvalidInput
from bithaul.exchange.frame import (
    MAX_HEADER,
    frame_head,
    max_frame_size,
    read_header,
    verify_payload,
    write_frame,
)
from bithaul.exchange.messages import HeldoutLoss, ReportHeader

PAYLOAD = bytes(range(256)) * 10


def header(**changes: Any) -> ReportHeader:
    values: dict[str, Any] = {
        "codec": "fp32-v1",
        "run": "demo",
        "layout_hash": "a" * 64,
        "base_version": 3,
        "task": 7,
        "fence": "b" * 32,
        "examples": 64,
        "tokens": 2000,
        "steps": 2,
        "seconds": 1.5,
        "loss_first": 8.5,
        "loss_last": 8.0,
        "loss_mean": 8.25,
        "heldout": HeldoutLoss(version=3, loss=8.4, tokens=99),
        "payload_size": len(PAYLOAD),
        "payload_sha256": hashlib.sha256(PAYLOAD).hexdigest(),
    }
    return ReportHeader(**{**values, **changes})


def frame() -> bytes:
    stream = io.BytesIO()
    size = write_frame(stream, header(), PAYLOAD)
    assert size == len(stream.getvalue()) <= max_frame_size(len(PAYLOAD))
    return stream.getvalue()


def test_round_trip_leaves_the_stream_at_the_payload() -> None:
    stream = io.BytesIO(frame())
    assert read_header(stream) == header()
    verify_payload(stream, header())
    assert stream.read() == PAYLOAD


def test_head_bytes() -> None:
    """Catches a silent change of the wire format."""
    data = frame()
    magic, version, length = struct.unpack_from("<4sHI", data)
    assert (magic, version) == (b"BHUF", 1)
    assert data[10 : 10 + length] == header().model_dump_json().encode()
    assert frame_head(header()) == data[: 10 + length]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "frame_short"),
        (b"BHUF\x01\x00", "frame_short"),
        (b"PK\x03\x04" + frame()[4:], "frame_magic"),
        (b"BHUF\x02\x00" + frame()[6:], "frame_version"),
        (b"BHUF\x01\x00\xff\xff\xff\xff{}", "frame_header"),
        (struct.pack("<4sHI", b"BHUF", 1, MAX_HEADER + 1) + b" " * (MAX_HEADER + 1), "frame_header"),
        (struct.pack("<4sHI", b"BHUF", 1, 100) + b"{}", "frame_short"),
        (struct.pack("<4sHI", b"BHUF", 1, 2) + b"{}", "frame_header"),
        (struct.pack("<4sHI", b"BHUF", 1, 4) + b"\xff\xfe\xfd\xfc", "frame_header"),
    ],
)
def test_refusals(data: bytes, code: str) -> None:
    with pytest.raises((CorruptFile, InvalidInput)) as caught:
        read_header(io.BytesIO(data))
    assert caught.value.error_code == code


@pytest.mark.parametrize("field", [{"loss_last": "NaN"}, {"tokens": -1}, {"fence": "x"}, {"extra": 1}])
def test_header_fields_are_bounded(field: dict[str, Any]) -> None:
    """Catches a report whose NaN loss or negative tokens would steer the run."""
    values = header().model_dump()
    values.update(field)
    import json

    text = json.dumps(values).replace('"NaN"', "NaN").encode()
    with pytest.raises(InvalidInput):
        read_header(io.BytesIO(struct.pack("<4sHI", b"BHUF", 1, len(text)) + text))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda p: p[:-1], "frame_length"),
        (lambda p: p + b"x", "frame_length"),
        (lambda p: b"x" + p[1:], "frame_sha256"),
    ],
)
def test_payload_must_match_its_header(change: Any, code: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        verify_payload(io.BytesIO(change(PAYLOAD)), header())
    assert caught.value.error_code == code


def test_writer_refuses_a_header_of_another_payload() -> None:
    with pytest.raises(InvalidInput):
        write_frame(io.BytesIO(), header(payload_size=1), PAYLOAD)


@given(data=st.binary(max_size=64), length=st.integers(0, 2**32 - 1))
def test_any_head_is_refused_without_a_large_allocation(data: bytes, length: int) -> None:
    """Catches a header length that sizes an allocation, and errors that are not ours."""
    stream = io.BytesIO(struct.pack("<4sHI", b"BHUF", 1, length) + data)
    tracemalloc.start()
    with pytest.raises((CorruptFile, InvalidInput)):
        read_header(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
