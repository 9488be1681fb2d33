"""Deltas of published weights: what is rebuilt is the full file, nothing drifts, damage is refused."""

from __future__ import annotations

import hashlib
import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import Tensors, tensors

from bithaul.errors import CorruptFile, InvalidInput, UnknownName
from bithaul.exchange.bf16 import from_bf16, to_bf16
from bithaul.exchange.deltas import NextVersion, advance, apply_delta, delta_size, longest_chain
from bithaul.exchange.weights import (
    BF16,
    INT4_DELTA,
    INT8_DELTA,
    WeightFormat,
    format_named,
    weights_named,
    weights_pieces,
    weights_size,
)
from bithaul.model.config import load_config
from bithaul.model.layout import layout_of

FORMS = [INT8_DELTA, INT4_DELTA]
Vector = np.ndarray[Any, np.dtype[np.float32]]


def full(version: int, vector: Vector) -> bytes:
    return b"".join(weights_pieces(version, vector, BF16))


def made(
    version: int, theta: Vector, before: bytes, layout: Tensors, form: WeightFormat
) -> tuple[bytes, bytes]:
    """(delta, full file) of the version after the one whose file is `before`."""
    base = np.frombuffer(before, "<u2", offset=weights_size(0))
    digest = hashlib.sha256(before).hexdigest()
    found = list(NextVersion(version, theta, base, base_sha256=digest, layout=layout, form=form).pieces())
    return b"".join(way for way, _ in found), b"".join(whole for _, whole in found)


def rebuilt(folder: Path, before: bytes, delta: bytes, layout: Tensors, form: WeightFormat) -> bytes:
    """What a worker makes of the file before and the delta; its SHA-256 is the returned one."""
    (folder / "base").write_bytes(before)
    (folder / "delta").write_bytes(delta)
    out = io.BytesIO()
    digest = apply_delta(
        folder / "base",
        folder / "delta",
        out,
        base_sha256=hashlib.sha256(before).hexdigest(),
        layout=layout,
        form=form,
    )
    assert digest == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue()


def words(file: bytes) -> Vector:
    return from_bf16(np.frombuffer(file, "<u2", offset=weights_size(0)))


SIZES = st.lists(st.sampled_from([1, 2, 7, 255, 256, 257, 1023, 1025, 3001, 66_001]), min_size=1, max_size=4)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.choice)
@given(sizes=SIZES, seed=st.integers(0, 2**32), scale=st.sampled_from([1e-7, 1e-3, 1.0, 1e4]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_full_file_and_delta_are_the_same_bytes(
    tmp_path: Path, form: WeightFormat, sizes: list[int], seed: int, scale: float
) -> None:
    """Any layout, odd ones too, any base (every finite word), any step: catches a nibble in the wrong byte,
    a block that crosses a tensor, another rounding on one of both sides."""
    layout, random = tensors(*sizes), np.random.default_rng(seed)
    base = random.integers(0, 2**16, layout.size).astype(np.uint16)
    base[(base & 0x7F80) >= 0x4880] = 0x8000  # beyond 2^18: no weight is, and fp16 scales end at 2^16 x 7
    theta = from_bf16(base) + random.standard_normal(layout.size).astype(np.float32) * np.float32(scale)
    theta[random.random(layout.size) < 0.1] = 0.0
    before = full(4, from_bf16(base))
    delta, whole = made(5, theta, before, layout, form)
    assert len(delta) == delta_size(layout, form)
    assert len(whole) == weights_size(layout.size, form)
    assert rebuilt(tmp_path, before, delta, layout, form) == whole


@pytest.mark.parametrize(("form", "steps"), [(INT8_DELTA, 127), (INT4_DELTA, 7)])
def test_nothing_drifts(tmp_path: Path, form: WeightFormat, steps: int) -> None:
    """Forty versions by deltas alone stay as near to theta as the first: the error of one delta and of one
    rounding. Catches deltas between thetas, whose errors add up."""
    layout, random = tensors(5000, 300), np.random.default_rng(3)
    theta = random.standard_normal(layout.size, np.float32)
    held = full(1, theta)
    for version in range(2, 42):
        theta = theta + random.standard_normal(layout.size).astype(np.float32) * np.float32(0.01)
        way = np.abs(theta - words(held)).max()
        delta, _ = made(version, theta, held, layout, form)
        held = rebuilt(tmp_path, held, delta, layout, form)
        most = way / steps / 2 * 1.01 + np.abs(theta).max() * 2.0**-8
        assert np.abs(words(held) - theta).max() <= most, version
    assert most < 0.03, "and that is little"


def test_bytes_are_the_published_ones(tmp_path: Path) -> None:
    """Catches another head, order or scale than docs/reference/wire-formats.md says."""
    layout = tensors(3)
    before = full(8, np.array([1.0, 2.0, 0.0], np.float32))
    theta = np.array([1.0 + 127.0, 2.0 - 63.6, 0.4], np.float32)  # of scale 1: 127, -64, 0
    delta, whole = made(9, theta, before, layout, INT8_DELTA)
    digest = hashlib.sha256(before).digest()
    head = struct.pack("<4sq32s", b"BWGD", 9, digest)
    assert delta == head + struct.pack("<4sIIe3b", b"BGB8", 3, 1, 1.0, 127, -64, 0)
    assert whole == full(9, np.array([128.0, -62.0, 0.0], np.float32))
    half, _ = made(9, np.array([8.0, -1.0, 0.4], np.float32), before, layout, INT4_DELTA)
    assert half == head + struct.pack("<4sIIe2B", b"BGB4", 3, 1, 1.0, 7 | (16 - 3) << 4, 0)


@given(
    word=st.integers(0, 0x4B7F).flatmap(lambda w: st.sampled_from([w, w | 0x8000])),
    q=st.integers(-127, 127),
    scale=st.integers(0, 0x7BFF),
)
def test_a_step_is_the_exact_sum_rounded_twice(word: int, q: int, scale: int) -> None:
    """Against fractions: so a machine that multiplies and adds in one go gives no other word."""
    base, step = np.array([word], np.uint16), np.array([scale], np.uint16).view(np.float16).astype(np.float32)
    product = np.float32(q) * step
    assert Fraction(float(product[0])) == q * Fraction(float(step[0])), "the product is exact"
    exact = Fraction(float(from_bf16(base)[0])) + q * Fraction(float(step[0]))
    nearest = rounded(exact)
    wanted = 0 if abs(nearest) < Fraction(1, 2**100) else to_bf16(np.array([nearest], np.float32))[0]
    assert advance(base, product)[0] == wanted


def rounded(exact: Fraction) -> np.float32:
    """To the nearest float32, half to even, from its neighbours."""
    near = np.float32(float(exact))
    choices = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(choices, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.uint32)) & 1))


def test_no_tiny_number_and_no_minus_zero_is_published() -> None:
    """What a processor that flushes subnormals to zero computes differently does not occur."""
    tiny = to_bf16(np.array([-0.0, 2.0**-130, -(2.0**-101), 2.0**-100, 2.0**-126], np.float32))
    assert advance(tiny, np.zeros(5, np.float32)).tolist() == [0, 0, 0, int(tiny[3]), 0]


def test_a_delta_is_a_fraction_of_the_file() -> None:
    """`small` of the page: 0.25 and 0.13 of float32, half and a quarter of bfloat16."""
    layout = layout_of(load_config("small", vocab_size=3042))
    whole = weights_size(layout.size, BF16)
    assert 0.500 < delta_size(layout, INT8_DELTA) / whole < 0.503
    assert 0.250 < delta_size(layout, INT4_DELTA) / whole < 0.256
    assert [longest_chain(layout, form) for form in FORMS] == [1, 3]


def broken_length(delta: bytes) -> bytes:
    return delta[:-1]


def broken_magic(delta: bytes) -> bytes:
    return b"BWGT" + delta[4:]


def broken_base(delta: bytes) -> bytes:
    return delta[:12] + bytes(32) + delta[44:]


def broken_count(delta: bytes) -> bytes:
    return delta[:48] + struct.pack("<I", 299) + delta[52:]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (broken_length, "delta_length"),
        (broken_magic, "delta_magic"),
        (broken_base, "delta_base"),
        (broken_count, "payload_count"),
    ],
)
def test_refusals(tmp_path: Path, spoil: Any, code: str) -> None:
    layout = tensors(300)
    before = full(1, np.ones(300, np.float32))
    delta, _ = made(2, np.full(300, 1.5, np.float32), before, layout, INT8_DELTA)
    with pytest.raises(CorruptFile) as caught:
        rebuilt(tmp_path, before, spoil(delta), layout, INT8_DELTA)
    assert caught.value.error_code == code


def test_a_base_of_another_format_is_refused(tmp_path: Path) -> None:
    """Catches float32 read as words: a file of the right length for twice the values."""
    layout = tensors(300)
    before = full(1, np.ones(300, np.float32))
    delta, _ = made(2, np.full(300, 1.5, np.float32), before, layout, INT8_DELTA)
    (tmp_path / "base").write_bytes(b"".join(weights_pieces(1, np.ones(300, np.float32))))
    (tmp_path / "delta").write_bytes(delta)
    with pytest.raises(CorruptFile):
        apply_delta(
            tmp_path / "base",
            tmp_path / "delta",
            io.BytesIO(),
            base_sha256=hashlib.sha256(before).hexdigest(),
            layout=layout,
            form=INT8_DELTA,
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38, 1e8])
def test_what_no_delta_can_hold_is_refused(bad: float) -> None:
    """NaN, and a step beyond what an fp16 scale times 127 is."""
    before = full(1, np.ones(300, np.float32))
    with pytest.raises(InvalidInput) as caught:
        made(2, np.full(300, bad, np.float32), before, tensors(300), INT8_DELTA)
    assert caught.value.error_code == "not_finite"


def test_both_sides_know_the_names() -> None:
    assert [weights_named(form.choice) for form in FORMS] == FORMS
    assert [format_named(form.name) for form in FORMS] == FORMS
    with pytest.raises(UnknownName, match="weights-int8-delta-v1"):
        format_named("weights-int2-delta-v1")
