"""Codecs: exact formats, bounded errors, every reason for refusal."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from layouts import Tensors, tensors

from bithaul.errors import CorruptFile, InvalidInput, LayoutMismatch, UnknownName
from bithaul.exchange.codecs import CODECS, codec_named, decode
from bithaul.exchange.pieces import Codec, Values
from bithaul.exchange.pseudo_gradient import encode_with_feedback

LOSSY = [c for c in CODECS.values() if not c.lossless]
ALL = list(CODECS.values())
ids = lambda c: c.name  # noqa: E731
values = st.floats(-1e4, 1e4, width=32)


def whole(codec: Codec, payload: bytes | bytearray, layout: Tensors, **options: int) -> Values:
    pieces = list(codec.pieces(io.BytesIO(payload), layout, **options))
    return np.concatenate([p.values() for p in pieces])


def test_int8_ef_bytes_are_the_published_ones() -> None:
    """Catches another field order, endianness, scale or rounding than requirements.md §3."""
    vector = np.array([127.0, -127.0, 0.5, -0.5, 1.49, 2.5, 0.0], np.float32)
    payload = codec_named("int8-ef-v1").encode(vector, tensors(7))
    assert bytes(payload) == struct.pack("<IIf7b", 0x46454742, 7, 1.0, 127, -127, 1, -1, 1, 3, 0)


def test_just_below_half_is_not_rounded_up() -> None:
    """Catches rounding by adding 0.5, which lifts 0.49999997 to 1."""
    below = np.nextafter(np.float32(0.5), np.float32(0))
    payload = codec_named("int8-ef-v1").encode(np.array([127, below, -below], np.float32), tensors(3))
    assert list(np.frombuffer(payload, np.int8, offset=12)) == [127, 0, 0]


def test_block_payload_has_blocks_per_tensor() -> None:
    """Catches blocks that cross a tensor border: the second tensor's small values would all become 0."""
    layout = tensors(1024 + 3, 5)
    vector = np.concatenate([np.full(1024 + 3, 100.0), np.full(5, 1e-3)]).astype(np.float32)
    codec = codec_named("int8-block-v1")
    payload = codec.encode(vector, layout)
    assert struct.unpack_from("<4sII", payload) == (b"BGB8", 1024 + 8, 3)
    assert len(payload) == 12 + 2 * 3 + 1024 + 8 == codec.encoded_size(layout)
    np.testing.assert_allclose(decode(codec, payload, layout), vector, rtol=0.01)


@pytest.mark.parametrize(("name", "width"), [("int8-block-v1", 1024), ("int4-block-v1", 256)])
@given(
    sizes=st.lists(st.sampled_from([1, 2, 1023, 1024, 1025, 2048, 70_000]), min_size=1, max_size=4),
    scale=st.floats(1e-6, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
def test_block_error_is_at_most_half_a_step_and_nothing_clips(
    name: str, width: int, sizes: list[int], scale: float, seed: int
) -> None:
    """Catches scales rounded down (values beyond 127 or 7 steps change their sign), wrong block borders, and
    halves of a byte that change places."""
    layout = tensors(*sizes)
    drawn = np.random.default_rng(seed).standard_t(3, layout.size) * scale
    vector = drawn.clip(-458_000, 458_000).astype(np.float32)  # seven of float16's largest: beyond is refused
    payload = codec_named(name).encode(vector, layout)
    blocks = struct.unpack_from("<I", payload, 8)[0]
    scales = np.frombuffer(payload, "<f2", blocks, 12).astype(np.float64)
    steps = np.concatenate(
        [np.repeat(scales[a:b], w) for a, b, w in _runs(layout, width)]
    )  # the step of each value, derived apart from the codec
    error = np.abs(vector.astype(np.float64) - decode(codec_named(name), payload, layout))
    assert (error <= steps * 0.5 * (1 + 1e-5)).all()


def _runs(layout: Tensors, width: int) -> list[tuple[int, int, int]]:
    runs, block = [], 0
    for tensor in layout.tensors:
        whole_blocks, tail = divmod(tensor.size, width)
        runs.append((block, block + whole_blocks, width))
        block += whole_blocks
        if tail:
            runs.append((block, block + 1, tail))
            block += 1
    return runs


@given(
    vector=arrays(
        np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_single_scale_error_is_at_most_half_a_step(vector: np.ndarray) -> None:
    """Catches clipping and overflow at the extremes of float32, subnormal values included."""
    codec, layout = codec_named("int8-ef-v1"), tensors(vector.size)
    try:
        payload = codec.encode(vector, layout)
        back = decode(codec, payload, layout).astype(np.float64)
    except CorruptFile:
        assert np.abs(vector).max() > 3.4e38  # the scale's own rounding went beyond float32
        return
    step = struct.unpack_from("<f", payload, 8)[0]
    assert (np.abs(vector - back) <= 0.5 * step * (1 + 1e-5)).all()


@given(vector=arrays(np.float64, st.integers(1, 50), elements=st.floats(-1e30, 1e30)))
def test_fp32_carries_differences_of_fp32_numbers_exactly(vector: np.ndarray) -> None:
    """Catches a payload that drops the low part."""
    rounded = vector.astype(np.float32).astype(np.float64) - vector[::-1].astype(np.float32)
    layout = tensors(vector.size)
    codec = codec_named("fp32-v1")
    back = whole(codec, codec.encode(rounded, layout), layout)
    np.testing.assert_allclose(back, rounded, rtol=2**-48, atol=1e-44)


@pytest.mark.parametrize("codec", ALL, ids=ids)
@given(start=st.integers(0, 5000), count=st.integers(0, 5000), chunk=st.integers(1, 3000))
def test_any_slice_equals_the_same_slice_of_the_whole(
    codec: Codec, start: int, count: int, chunk: int
) -> None:
    """Catches a merger reading shifted values or a wrong block's scale in the middle of a file."""
    layout = tensors(2500, 7, 1024, 1469)
    vector = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    payload = codec.encode(vector, layout)
    stop = min(5000, start + count)
    start = min(start, stop)
    out = np.zeros(5000)
    summed, fresh, square = np.ones(5000), np.full(5000, np.nan), 0.0
    for piece in codec.pieces(io.BytesIO(payload), layout, chunk_values=chunk, start=start, stop=stop):
        assert 0 < piece.size <= chunk
        place = slice(piece.offset, piece.offset + piece.size)
        out[place] = piece.values()
        piece.add_to(summed[place], 0.3, fresh=False)
        piece.add_to(fresh[place], 0.3, fresh=True)
        square += piece.square()
    expected = whole(codec, payload, layout)
    np.testing.assert_array_equal(out[start:stop], expected[start:stop])
    assert not out[:start].any()
    assert not out[stop:].any()
    expected_sum = 1.0 + 0.3 * out
    expected_sum[:start], expected_sum[stop:] = 1.0, 1.0
    np.testing.assert_array_equal(summed, expected_sum)  # to the bit: nothing is rounded otherwise
    np.testing.assert_array_equal(fresh[start:stop], 0.3 * out[start:stop])
    assert np.isnan(fresh[:start]).all()
    assert np.isnan(fresh[stop:]).all()
    assert square == pytest.approx(float((out**2).sum()), rel=1e-12)


@pytest.mark.parametrize("codec", ALL, ids=ids)
def test_zero_update_is_exactly_zero(codec: Codec) -> None:
    """Catches division by a zero scale, and a task of no steps that moves the weights (pitfall T3)."""
    layout = tensors(1500, 1)
    assert not decode(codec, codec.encode(np.zeros(1501, np.float32), layout), layout).any()


@pytest.mark.parametrize("codec", ALL, ids=ids)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1023, 1030])
def test_encoder_refuses_what_is_not_finite(codec: Codec, bad: float, at: int) -> None:
    vector = np.ones(1031, np.float32)
    vector[at] = bad
    with pytest.raises(InvalidInput) as caught:
        codec.encode(vector, tensors(1031))
    assert caught.value.error_code == "not_finite"


def test_block_encoder_refuses_beyond_fp16() -> None:
    """Catches an infinite scale that would decode to NaN."""
    with pytest.raises(InvalidInput, match="range"):
        codec_named("int8-block-v1").encode(np.array([1e8], np.float32), tensors(1))


@pytest.mark.parametrize("codec", ALL, ids=ids)
def test_encoder_refuses_another_length(codec: Codec) -> None:
    with pytest.raises(LayoutMismatch):
        codec.encode(np.ones(3, np.float32), tensors(4))


def _broken(codec: Codec, payload: bytearray, how: str) -> tuple[bytes, str]:
    data = bytearray(payload)
    match how:
        case "empty":
            return b"", "payload_short"
        case "short head":
            return bytes(data[:7]), "payload_short"
        case "magic":
            data[0] ^= 1
            return bytes(data), "payload_magic"
        case "count":
            data[4] ^= 1
            return bytes(data), "payload_count"
        case "huge count":
            data[4:8] = b"\xff\xff\xff\xff"
            return bytes(data), "payload_count"
        case "cut":
            return bytes(data[:-1]), "payload_length"
        case _:
            return bytes(data) + b"\0", "payload_length"


@pytest.mark.parametrize("codec", ALL, ids=ids)
@pytest.mark.parametrize("how", ["empty", "short head", "magic", "count", "huge count", "cut", "longer"])
def test_decoder_refuses(codec: Codec, how: str) -> None:
    layout = tensors(2000)
    data, code = _broken(codec, codec.encode(np.ones(2000, np.float32), layout), how)
    with pytest.raises(CorruptFile) as caught:
        decode(codec, data, layout)
    assert caught.value.error_code == code


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -1e-30])
def test_decoder_refuses_bad_scales(scale: float) -> None:
    """Catches a poisoned scale: one field would turn every weight into NaN."""
    layout = tensors(4)
    single = struct.pack("<4sIf4b", b"BGEF", 4, scale, 1, 2, 3, 4)
    block = struct.pack("<4sIIe4b", b"BGB8", 4, 1, max(scale, -1.0) if scale == scale else scale, 1, 2, 3, 4)
    if scale != -1e-30:  # not representable in fp16
        with pytest.raises(CorruptFile) as caught:
            decode(codec_named("int8-block-v1"), block, layout)
        assert caught.value.error_code == "payload_scale"
    with pytest.raises(CorruptFile) as caught:
        decode(codec_named("int8-ef-v1"), single, layout)
    assert caught.value.error_code == "payload_scale"


def test_decoder_refuses_values_that_are_not_finite() -> None:
    layout = tensors(2)
    plain = struct.pack("<4sI4f", b"BGF4", 2, 1.0, np.nan, 0.0, 0.0)
    huge = struct.pack("<4sIf2b", b"BGEF", 2, 3e38, 1, 127)
    for name, payload in (("fp32-v1", plain), ("int8-ef-v1", huge)):
        with pytest.raises(CorruptFile) as caught:
            decode(codec_named(name), payload, layout)
        assert caught.value.error_code == "payload_not_finite"


@pytest.mark.parametrize("codec", ALL, ids=ids)
@given(head=st.binary(max_size=40))
def test_random_heads_never_allocate(codec: Codec, head: bytes) -> None:
    """Catches a count field that sizes an allocation before it is checked (4 GB in the predecessor)."""
    layout = tensors(100_000_000)
    tracemalloc.start()
    with pytest.raises(CorruptFile):
        decode(codec, codec.magic + head, layout)  # type: ignore[attr-defined]  # all of ours have it
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("codec", LOSSY, ids=ids)
def test_error_feedback_lets_small_progress_add_up(codec: Codec) -> None:
    """Catches a lost residual: values far below one step would never arrive."""
    layout = tensors(1024)
    u = np.full(1024, 1e-4, np.float32)
    u[0] = 1.0  # the step is 1/127, eighty times the others
    residual, arrived, forgotten = None, np.zeros(1024), np.zeros(1024)
    for _ in range(200):
        if residual is not None:
            forgotten += (1.0 - codec.residual_decay) * residual
        payload, residual = encode_with_feedback(codec, u.copy(), residual, layout)
        arrived += decode(codec, payload, layout)
    assert residual is not None
    np.testing.assert_allclose(arrived + residual + forgotten, 200 * u.astype(np.float64), rtol=2e-3)
    if codec.residual_decay == 1.0:
        np.testing.assert_allclose(arrived[1:], 0.02, atol=0.5 / 127 * 1.01)
    if codec.name == "topk-2bit-v1":  # one value in 64 an update, and each has had its turn
        assert (arrived > 0).all()


def test_topk_bytes_are_the_published_ones() -> None:
    """Catches another order of the bits, of the places or of the levels than the format says."""
    vector = np.full(130, 0.01, np.float32)  # k = 3
    vector[[5, 100, 127]] = [4.0, -1.0, 2.0]
    payload = codec_named("topk-2bit-v1").encode(vector, tensors(130))
    bits = 5 | (1 << 13) | (100 | (1 << 12)) << 14 | 127 << 28
    assert bytes(payload) == struct.pack("<4sII2e", b"BGK2", 130, 1, 1.5, 4.0) + bits.to_bytes(6, "little")
    back = decode(codec_named("topk-2bit-v1"), payload, tensors(130))
    assert {int(i): float(back[i]) for i in np.flatnonzero(back)} == {5: 4.0, 100: -1.5, 127: 1.5}


def test_int4_bytes_are_the_published_ones() -> None:
    """Catches the upper half first, and -7 that comes back as 9."""
    vector = np.array([7.0, -7.0, 1.0, 0.4, -2.0], np.float32)
    payload = codec_named("int4-block-v1").encode(vector, tensors(5))
    assert bytes(payload) == struct.pack("<4sIIe", b"BGB4", 5, 1, 1.0) + bytes([0x97, 0x01, 0x0E])
    assert list(decode(codec_named("int4-block-v1"), payload, tensors(5))) == [7, -7, 1, 0, -2]


def test_bf16_rounds_half_to_even() -> None:
    """Catches truncation, and a value just below the largest that becomes infinite unnoticed."""
    codec, layout = codec_named("bf16-v1"), tensors(4)
    vector = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-7], np.float32)
    assert list(decode(codec, codec.encode(vector, layout), layout)) == [1.0, 1.0, 1 + 2**-6, -1 - 2**-7]
    with pytest.raises(InvalidInput, match="range"):
        codec.encode(np.array([3.4e38], np.float32), tensors(1))


@given(
    sizes=st.lists(st.sampled_from([1, 63, 64, 65, 4095, 4096, 4097, 12_300]), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_topk_keeps_the_largest_of_every_chunk(sizes: list[int], seed: int) -> None:
    """Catches chunks that cross a tensor border, a kept value smaller than one left out, a wrong sign."""
    layout = tensors(*sizes)
    vector = np.random.default_rng(seed).standard_t(3, layout.size).astype(np.float32)
    codec = codec_named("topk-2bit-v1")
    back = decode(codec, codec.encode(vector, layout), layout)
    for tensor in layout.tensors:
        for start in range(tensor.offset, tensor.offset + tensor.size, 4096):
            stop = min(start + 4096, tensor.offset + tensor.size)
            ours, theirs = np.abs(vector[start:stop]), back[start:stop]
            sent = np.flatnonzero(theirs)
            assert sent.size == -(-(stop - start) // 64)
            left = np.delete(ours, sent)
            assert not left.size or ours[sent].min() >= left.max()
            assert (np.sign(theirs[sent]) == np.sign(vector[start:stop][sent])).all()
            assert np.unique(np.abs(theirs[sent])).size <= 2


@pytest.mark.parametrize("how", ["twice", "beyond", "filling"])
def test_topk_refuses_places_that_cannot_be(how: str) -> None:
    """Catches a place written twice or outside its chunk (another tensor), and bits without a meaning."""
    layout, codec = tensors(130), codec_named("topk-2bit-v1")
    payload = codec.encode(np.arange(130, dtype=np.float32), layout)
    first, second, third = {
        "twice": (127, 127, 129),
        "beyond": (127, 128, 130),
        "filling": (127, 128, 129 | 1 << 14),
    }[how]
    payload[16:] = (first | second << 14 | third << 28).to_bytes(6, "little")
    with pytest.raises(CorruptFile) as caught:
        decode(codec, payload, layout)
    assert caught.value.error_code == "payload_index"


def test_unknown_codec_lists_the_known() -> None:
    with pytest.raises(
        UnknownName, match="int8-block-v1, int4-block-v1, topk-2bit-v1, int8-ef-v1, bf16-v1, fp32-v1"
    ):
        codec_named("zip")


def test_encoding_is_fast_and_lean() -> None:
    """Catches a per-value loop or copies of the vector: 117M values must take < 2 s and < 1.5x memory."""
    layout = tensors(*[8_000_000, 768] * 2)
    vector = np.random.default_rng(0).standard_normal(layout.size, np.float32) * np.float32(1e-3)
    for codec in LOSSY:
        tracemalloc.start()
        codec.encode(vector, layout)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < codec.encoded_size(layout) + 0.25 * vector.nbytes, codec.name
        began = time.process_time()
        payload = codec.encode(vector, layout)
        whole(codec, payload, layout)
        assert time.process_time() - began < 2.0, codec.name  # really about 0.1 s


@pytest.mark.parametrize("name", ["int8-block-v1", "int4-block-v1"])
@pytest.mark.parametrize("chunk", [1000, 70_000])
def test_moving_in_one_pass_is_adding_and_stepping(name: str, chunk: int) -> None:
    """To the bit, and the distance too: catches a product that is rounded elsewhere, and a block's border."""
    layout, random = tensors(5000, 66_001, 3), np.random.default_rng(5)
    codec, vector = codec_named(name), random.standard_normal(layout.size, np.float32)
    theta = random.standard_normal(layout.size, np.float32)
    payload = codec.encode(vector, layout)
    for factor, rate in ((1.0, 1.0), (0.3, 0.7), (1 / 3, 0.1)):
        for piece in codec.pieces(io.BytesIO(payload), layout, chunk_values=chunk):
            part = theta[piece.offset : piece.offset + piece.size]
            total, new = np.empty(piece.size), np.empty_like(part)
            piece.add_to(total, factor, fresh=True)
            square = piece.move(part, factor, rate, new)
            wanted = (part.astype(np.float64) - rate * total).astype(np.float32)
            assert np.array_equal(new, wanted)
            assert square == pytest.approx(float(((wanted.astype(np.float64) - part) ** 2).sum()))
