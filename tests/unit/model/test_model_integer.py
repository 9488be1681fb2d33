"""Integer products in register blocks: exact at every shape and at the largest numbers they may meet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bithaul.model import tiles

if (problem := tiles.missing()) is not None:
    pytest.skip(f"register blocks: {problem}", allow_module_level=True)

from bithaul.model import integer, wayback
from bithaul.model.bitlinear import TernaryCodes
from bithaul.model.products import WORDS, StepPath

SHAPES = [(1, 1, 1), (5, 3, 7), (6, 16, 16), (7, 30, 17), (13, 260, 33), (256, 256, 64)]


def words_left(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], float]:
    """Both left layouts of `fixed_point`, filled with noise before, and the scale."""
    rows, width = values.shape
    random = np.random.default_rng(3)
    shapes = (
        (integer.panels(rows, integer.ROWS), integer.panels(width, 2), integer.ROWS),
        (integer.panels(width, integer.ROWS), integer.panels(rows, 2), integer.ROWS),
    )
    along, across = (random.integers(-(2**31), 2**31, shape).astype(np.int32) for shape in shapes)
    return along, across, float(integer.fixed_point(values, along, across))


def words_right(values: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    length, columns = values.shape
    shape = (integer.panels(columns, tiles.COLUMNS), integer.panels(length, 2), tiles.COLUMNS)
    packed = np.full(shape, -1, np.int32)
    integer.pack_words(values, packed)
    return packed


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_gradient_products_are_those_of_the_rounded_gradient(m: int, k: int, n: int) -> None:
    """Catches a row, column or pair that is dropped, used twice, or read from what was there before."""
    random = np.random.default_rng(m * 1000 + k)
    d = random.standard_normal((m, n)).astype(np.float32)
    codes = random.integers(-1, 2, (n, k)).astype(np.int8)
    x = random.integers(-128, 128, (m, k)).astype(np.int8)
    along, across, scale = words_left(d)
    assert scale == pytest.approx(float(np.abs(d).max()) / 32767, rel=1e-6)
    rounded = np.round(d.astype(np.float64) / scale) * scale
    assert np.abs(rounded - d).max() <= 0.51 * scale
    p = np.full((m, k), np.nan, np.float32)
    integer.multiply_words(along, words_right(codes), np.float32(scale), p)
    np.testing.assert_allclose(p, rounded @ codes, rtol=2e-6, atol=2 * scale)
    dw = np.full((n, k), np.nan, np.float32)
    scales = np.full(n, scale, np.float32)
    integer.add_words(across, words_right(x), scales, True, dw)
    np.testing.assert_allclose(dw, rounded.T @ x, rtol=2e-6, atol=300 * scale)
    integer.add_words(across, words_right(x), 2 * scales, False, dw)
    np.testing.assert_allclose(dw, 3 * (rounded.T @ x), rtol=4e-6, atol=900 * scale)


def test_the_largest_block_does_not_overflow() -> None:
    """512 rows of the largest gradient by the largest activation is just below 2^31: 513 are too much."""
    assert integer.MOST_ROWS * 128 * 32767 < 2**31 <= (integer.MOST_ROWS + 1) * 128 * 32767
    assert wayback.BLOCK_ROWS <= integer.MOST_ROWS
    d = np.full((integer.MOST_ROWS, 6), -1.0, np.float32)
    x = np.full((integer.MOST_ROWS, 16), -128, np.int8)
    _, across, scale = words_left(d)
    dw = np.empty((6, 16), np.float32)
    integer.add_words(across, words_right(x), np.full(6, scale, np.float32), True, dw)
    np.testing.assert_allclose(dw, 128 * integer.MOST_ROWS, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_shows(bad: float) -> None:
    """Rounded to a number it would poison the weights; as NaN it makes the step be dropped."""
    d = np.ones((8, 8), np.float32)
    d[5, 3] = bad
    along, _, scale = words_left(d)
    p = np.zeros((8, 4), np.float32)
    integer.multiply_words(along, words_right(np.ones((8, 4), np.int8)), np.float32(scale), p)
    assert np.isnan(p).all()


def test_a_way_back_wants_its_block_filled_and_knows_no_rows_as_zero() -> None:
    codes = torch.ones((16, 8), dtype=torch.int8)
    path = StepPath("fp32", WORDS, "")
    ternary = TernaryCodes((), path, codes, codes, path.prepare_backward(codes), (np.float32(0.5),), (16,))
    way = wayback.way_back("test", torch.full((4, 8), 3, dtype=torch.int8), ternary, path)
    with pytest.raises(ValueError, match="fill the block"):
        way.multiply(slice(0, 4))
    assert not way.weight_gradients()[0].any(), "nothing was given"
    way.block(slice(2, 4)).fill(1.0)  # not from row 0 on: the first block starts the sum, wherever it lies
    assert (way.multiply(slice(2, 4)) == 16).all()
    np.testing.assert_allclose(way.weight_gradients()[0], 2 * 3 / 0.5, rtol=1e-4)


def test_a_gradient_of_zeros_stays_zero() -> None:
    along, across, scale = words_left(np.zeros((9, 5), np.float32))
    assert np.isfinite(scale)
    assert not along.any()
    assert not across.any()


def test_a_cap_of_the_instruction_set_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(tiles.numba.config), "CPU_FEATURES", "+sse2,+avx")
    assert tiles.missing.__wrapped__() == "there is no AVX2"
    monkeypatch.setitem(vars(tiles.numba.config), "CPU_FEATURES", "+avx2")
    assert tiles.missing.__wrapped__() is None
    monkeypatch.setitem(vars(tiles.numba.config), "CPU_FEATURES", None)
    monkeypatch.setitem(vars(tiles.numba.config), "ENABLE_AVX", 0)
    assert tiles.missing.__wrapped__() == "there is no AVX2"
    monkeypatch.setattr(tiles.platform, "machine", lambda: "aarch64")
    assert "aarch64" in (tiles.missing.__wrapped__() or "")
