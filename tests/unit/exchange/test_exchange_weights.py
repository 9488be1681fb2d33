"""Weights v1: the published bytes, exact round trips, every reason for refusal."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.errors import CorruptFile, InvalidInput
from bithaul.exchange.weights import open_weights, read_weights, verify_weights, weights_size, write_weights

VECTOR = np.random.default_rng(0).standard_normal(700_000, np.float32)


def written(path: Path, vector: np.ndarray = VECTOR, version: int = 5) -> str:
    with path.open("wb") as file:
        return write_weights(file, version, vector)


def test_bytes_are_the_published_ones() -> None:
    stream = io.BytesIO()
    digest = write_weights(stream, 258, np.array([1.5, -2.0], np.float32))
    assert stream.getvalue() == struct.pack("<IqI2f", 0x54475742, 258, 2, 1.5, -2.0)
    assert digest == hashlib.sha256(stream.getvalue()).hexdigest()


def test_file_round_trip_is_exact_and_mapped(tmp_path: Path) -> None:
    """Catches a lost piece border and a copy of 470 MB where a map will do."""
    path = tmp_path / "w"
    digest = written(path)
    assert path.stat().st_size == weights_size(VECTOR.size)
    weights = verify_weights(path, expected_count=VECTOR.size, sha256=digest)
    assert weights.version == 5
    assert isinstance(weights.vector, np.memmap)
    np.testing.assert_array_equal(weights.vector, VECTOR)
    with pytest.raises(ValueError, match="read-only"):
        weights.vector[0] = 1


def test_bytes_round_trip() -> None:
    stream = io.BytesIO()
    write_weights(stream, 1, VECTOR)
    np.testing.assert_array_equal(read_weights(stream.getvalue(), expected_count=VECTOR.size).vector, VECTOR)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"BWGT", "weights_short"),
        (struct.pack("<4sqI2f", b"BGEF", 1, 2, 0, 0), "weights_magic"),
        (struct.pack("<4sqI2f", b"BWGT", -1, 2, 0, 0), "weights_version"),
        (struct.pack("<4sqI2f", b"BWGT", 1, 3, 0, 0), "weights_count"),
        (struct.pack("<4sqI2f", b"BWGT", 1, 2**30, 0, 0), "weights_count"),
        (struct.pack("<4sqIf", b"BWGT", 1, 2, 0), "weights_length"),
        (struct.pack("<4sqI3f", b"BWGT", 1, 2, 0, 0, 0), "weights_length"),
    ],
)
def test_refusals(tmp_path: Path, data: bytes, code: str) -> None:
    (tmp_path / "w").write_bytes(data)
    for read in (
        lambda: read_weights(data, expected_count=2),
        lambda: open_weights(tmp_path / "w", expected_count=2),
    ):
        with pytest.raises(CorruptFile) as caught:
            read()
        assert caught.value.error_code == code


def test_flipped_bit_is_found(tmp_path: Path) -> None:
    """Catches trust in a file whose length is right."""
    path = tmp_path / "w"
    digest = written(path)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match="SHA-256"):
        verify_weights(path, expected_count=VECTOR.size, sha256=digest)


def test_not_finite_is_neither_written_nor_believed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        write_weights(io.BytesIO(), 1, np.array([np.nan], np.float32))
    data = struct.pack("<4sqIf", b"BWGT", 1, 1, np.inf)
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(CorruptFile) as caught:
        verify_weights(tmp_path / "w", expected_count=1, sha256=hashlib.sha256(data).hexdigest())
    assert caught.value.error_code == "weights_not_finite"


@given(head=st.binary(max_size=60))
def test_random_bytes_are_refused(head: bytes) -> None:
    with pytest.raises(CorruptFile):
        read_weights(b"BWGT" + head, expected_count=1_000_000_000)
