"""bfloat16: rounded as torch rounds it, the same in updates and in weights, widened exactly."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bithaul.errors import CorruptFile, InvalidInput, UnknownName
from bithaul.exchange.bf16 import all_finite, from_bf16, to_bf16
from bithaul.exchange.codecs import codec_named, decode
from bithaul.exchange.weights import (
    BF16,
    open_weights,
    read_weights,
    verify_weights,
    weights_named,
    weights_size,
    write_weights,
)
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of

TINY = ModelConfig(
    vocab_size=12, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, context_length=8
)
EVERY_WORD = np.arange(2**16, dtype=np.uint16)
FINITE = EVERY_WORD[(EVERY_WORD & 0x7FFF) < 0x7F80]


def torch_words(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def test_a_widened_word_is_itself_again() -> None:
    """All of them, those near zero too: publishing what was published changes nothing."""
    assert np.array_equal(to_bf16(from_bf16(FINITE)), FINITE)
    assert from_bf16(FINITE).tolist() == torch.from_numpy(FINITE.view(np.int16)).view(torch.bfloat16).tolist()


def test_rounding_is_to_the_nearest_and_half_to_even() -> None:
    """Against torch: just below, at and above the middle between each two neighbours, and random bits."""
    middles = (FINITE.astype(np.uint32) << 16) + 0x8000
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    bits = np.concatenate([middles - 1, middles, middles + 1, random])
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    assert np.array_equal(to_bf16(values), torch_words(values))
    three = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    assert to_bf16(three).tolist() == [0x3F80, 0x3F82, 0x3F81], "even, even, nearest"


def test_what_is_no_number_stays_none() -> None:
    """Catches a NaN whose carry makes it zero, and the largest float32, which bfloat16 cannot hold."""
    bad = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0x7F7FFFFF], np.uint32).view(np.float32)
    for value in bad:
        assert not all_finite(to_bf16(np.array([value])))
        with pytest.raises(InvalidInput) as caught:
            write_weights(io.BytesIO(), 1, np.array([0, value], np.float32), BF16)
        assert caught.value.error_code == "not_finite"


def test_updates_and_weights_share_one_rounding() -> None:
    """Catches two roundings that drift apart: the words of both files are the same."""
    layout = layout_of(TINY)
    vector = np.random.default_rng(1).standard_normal(layout.size, np.float32)
    file = io.BytesIO()
    write_weights(file, 3, vector, BF16)
    payload = codec_named("bf16-v1").encode(vector, layout)
    assert file.getvalue()[weights_size(0) :] == bytes(payload[8:])
    there = read_weights(file.getvalue(), expected_count=layout.size).vector
    assert np.array_equal(there, decode(codec_named("bf16-v1"), payload, layout))


def test_a_file_is_half_as_long_and_opens_as_float32(tmp_path: Path) -> None:
    """More than one piece of a MiB, so that a lost border shows."""
    vector = np.random.default_rng(2).standard_normal(1_300_001, np.float32)
    path = tmp_path / "w"
    with path.open("wb") as file:
        digest = write_weights(file, 7, vector, BF16)
    assert path.stat().st_size == weights_size(vector.size, BF16) == 16 + 2 * vector.size
    assert path.read_bytes()[:16] == struct.pack("<4sqI", b"BWGH", 7, vector.size)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    weights = verify_weights(path, expected_count=vector.size, sha256=digest)
    assert (weights.version, weights.vector.dtype) == (7, np.float32)
    assert np.array_equal(weights.vector.view(np.uint32), torch_words(vector).astype(np.uint32) << 16)
    with pytest.raises(ValueError, match="read-only"):
        weights.vector[0] = 1
    again = io.BytesIO()
    assert write_weights(again, 7, weights.vector, BF16) == digest, "rounding twice is rounding once"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack("<4sqI2f", b"BWGH", 1, 2, 0, 0), "weights_length"),
        (struct.pack("<4sqI2H", b"BWGT", 1, 2, 0, 0), "weights_length"),
        (struct.pack("<4sqI3H", b"BWGH", 1, 3, 0, 0, 0), "weights_count"),
        (struct.pack("<4sqI2H", b"HGWB", 1, 2, 0, 0), "weights_magic"),
        (struct.pack("<4sqI2H", b"BWGH", 1, 2, 0, 0x7F80), "weights_not_finite"),
    ],
)
def test_refusals(tmp_path: Path, data: bytes, code: str) -> None:
    """Catches one format read as the other."""
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(CorruptFile) as caught:
        verify_weights(tmp_path / "w", expected_count=2, sha256=hashlib.sha256(data).hexdigest())
    assert caught.value.error_code == code
    if code != "weights_not_finite":
        with pytest.raises(CorruptFile):
            open_weights(tmp_path / "w", expected_count=2)


def test_an_unknown_choice_names_the_known_ones() -> None:
    assert weights_named("bf16") is BF16
    with pytest.raises(UnknownName, match="'fp8'; choose fp32 or bf16"):
        weights_named("fp8")
