"""The page that lists every SEC number says what the tests say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent


def test_the_matrix_is_fresh_and_whole():
    """Wrong result: a number without a test that is not said to be open, or a page of yesterday."""
    spec = importlib.util.spec_from_file_location("matrix", HERE / "matrix.py")
    matrix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(matrix)
    assert sorted(matrix.PROMISES) == list(range(1, 63))
    assert sorted(number for numbers in matrix.GROUPS.values() for number in numbers) == list(range(1, 63))
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.page(), "run: make security-matrix"
