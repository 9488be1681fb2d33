"""The sign and the precision of an update, pinned by problems with a known answer."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bithaul.exchange.codecs import CODECS, codec_named, decode
from bithaul.exchange.pseudo_gradient import encode_with_feedback, pseudo_gradient
from bithaul.model.config import load_config
from bithaul.model.layout import Layout, TensorSpec, layout_of


def one_tensor(size: int) -> Layout:
    return Layout((TensorSpec("w", (size,), 0),))


def merged(start: np.ndarray, end: np.ndarray, codec_name: str, layout: Layout) -> np.ndarray:
    """What one merge at rate 1 makes of one worker's update: start - u, rounded to float32 once."""
    codec = codec_named(codec_name)
    payload, _ = encode_with_feedback(codec, pseudo_gradient(start, end, exact=codec.lossless), None, layout)
    theta = start.copy()
    for piece in codec.pieces(io.BytesIO(payload), layout, chunk_values=100_000):
        offset, u = piece.offset, piece.values()
        piece = theta[offset : offset + u.size].astype(np.float64)
        theta[offset : offset + u.size] = piece - u
    return theta


@pytest.mark.parametrize("codec", CODECS)
def test_subtracting_the_update_moves_towards_the_worker(codec: str) -> None:
    """Catches the predecessor's wrong sign and its factor of a hundred (pitfall T2)."""
    start, end = np.array([1.0, -1.0, 0.5], np.float32), np.array([0.5, -2.0, 0.5], np.float32)
    off = {"int4-block-v1": 1 / 14, "topk-2bit-v1": 0.5}  # half a step; of three values one is sent
    np.testing.assert_allclose(
        merged(start, end, codec, one_tensor(3)), end, atol=1.002 * off.get(codec, 0.0049)
    )


@pytest.mark.parametrize("codec", ["int4-block-v1", "topk-2bit-v1"])
def test_coarse_updates_go_the_right_way_and_repeat_until_they_are_there(codec: str) -> None:
    """Catches a residual with the wrong sign or none: of the sparse updates 39 % of the way would be left."""
    layout, rng = one_tensor(5000), np.random.default_rng(0)
    theta, end = (rng.standard_normal((2, 5000)) * 0.02).astype(np.float32)
    found, residual, distance = codec_named(codec), None, [float(np.abs(theta - end).mean())]
    for _ in range(400):  # a worker whose training goes a tenth of the way
        u = np.float32(0.1) * (theta - end)
        payload, residual = encode_with_feedback(found, u, residual, layout)
        theta = theta - decode(found, payload, layout)
        distance.append(float(np.abs(theta - end).mean()))
    assert distance[1] < distance[0]
    assert distance[-1] < 0.15 * distance[0]


def test_merged_weights_equal_the_worker_s_to_the_bit_at_real_size() -> None:
    """Catches a float32 difference: some percent of the weights end nearer to zero than it can express."""
    layout = layout_of(load_config("small", vocab_size=5174))
    rng = np.random.default_rng(0)
    start = (rng.standard_normal(layout.size) * 0.02).astype(np.float32)
    end = (start + rng.standard_normal(layout.size) * 1e-2).astype(np.float32)
    inexact = start - (start - end)
    assert 0.001 < np.mean(inexact != end) < 0.5  # plain float32 would fail
    np.testing.assert_array_equal(merged(start, end, "fp32-v1", layout), end)


finite = st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)


@given(start=arrays(np.float32, 20, elements=finite), end=arrays(np.float32, 20, elements=finite))
def test_exact_within_the_stated_range(start: np.ndarray, end: np.ndarray) -> None:
    assume(((np.abs(end) * 2.0**28 > np.abs(start)) | (end == 0)).all())
    np.testing.assert_array_equal(merged(start, end, "fp32-v1", one_tensor(20)), end)


@pytest.mark.parametrize("codec", ["int8-block-v1", "int8-ef-v1"])
def test_int8_is_within_one_quantum(codec: str) -> None:
    rng = np.random.default_rng(0)
    start = (rng.standard_normal(5000) * 0.02).astype(np.float32)
    end = (start + rng.standard_normal(5000) * 1e-3).astype(np.float32)
    quantum = np.abs(start - end).max() / 127
    assert np.abs(merged(start, end, codec, one_tensor(5000)) - end).max() <= quantum


@pytest.mark.parametrize("codec", CODECS)
def test_no_steps_no_change(codec: str) -> None:
    start = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    np.testing.assert_array_equal(merged(start, start.copy(), codec, one_tensor(3000)), start)
