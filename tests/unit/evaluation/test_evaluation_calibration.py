"""Calibration figures against cases counted by hand, and the temperature against one that was put in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bithaul.errors import InvalidInput
from bithaul.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    best_temperature,
    brier_score,
    calibrate,
    equal_width_bins,
    expected_error,
    mean_nats,
    softmax,
)


def test_expected_error_by_hand() -> None:
    """Bins of a fifth: (0.8, 1] holds 0.9 right and 1.0 wrong, gap 0.45; (0.4, 0.6] 0.6 right, gap 0.4."""
    confidence, right = np.array([0.9, 1.0, 0.6]), np.array([True, False, True])
    assert expected_error(confidence, right, bins=5) == pytest.approx((2 * 0.45 + 0.4) / 3)


def test_an_edge_belongs_to_the_bin_below() -> None:
    """Bins are (low, high]: 0.6 of five bins is in the third, and 0 in the first."""
    cells = equal_width_bins(np.array([0.6, 0.61, 0.0]), np.array([True, True, False]), bins=5)
    assert [cell.count for cell in cells] == [1, 0, 1, 1, 0]
    assert (cells[2].low, cells[2].high, cells[2].accuracy) == (0.4, 0.6, 1.0)


def test_bins_of_equal_mass() -> None:
    """Sorted and halved: (0.5, 0.6) both right, (0.9, 0.9) none. Unsorted halves give a third of it."""
    confidence, right = np.array([0.9, 0.5, 0.9, 0.6]), np.array([False, True, False, True])
    wanted = (abs(1.1 - 2) + abs(1.8 - 0)) / 4
    assert expected_error(confidence, right, bins=2, equal_mass=True) == pytest.approx(wanted)


def test_a_calibrated_model_has_no_error() -> None:
    confidence = np.full(10, 0.7)
    assert expected_error(confidence, np.arange(10) < 7) == pytest.approx(0.0)
    assert expected_error(confidence, np.arange(10) < 3) == pytest.approx(0.4)


def test_brier_by_hand() -> None:
    """(0.3² + 0.2² + 0.1²) and (0.5² + 0.5²), averaged; the chosen intent alone gives less."""
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
    assert brier_score(probabilities, np.array([0, 1])) == pytest.approx((0.14 + 0.5) / 2)
    assert probabilities[0, 0] == 0.7


def test_nats_by_hand() -> None:
    logits = np.log(np.array([[0.7, 0.3], [0.2, 0.8]]))
    assert mean_nats(logits, np.array([0, 0])) == pytest.approx(-(math.log(0.7) + math.log(0.2)) / 2)
    assert mean_nats(np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)


def test_the_temperature_that_was_put_in_comes_out() -> None:
    """Answers in exactly the shares the logits say, then logits three times too sure."""
    logits = np.log(np.array([[0.8, 0.1, 0.1]] * 10 + [[0.3, 0.3, 0.4]] * 10))
    gold = np.array([0] * 8 + [1, 2] + [0] * 3 + [1] * 3 + [2] * 4)
    assert best_temperature(logits, gold) == pytest.approx(1.0, rel=1e-9)
    assert best_temperature(logits * 3, gold) == pytest.approx(3.0, rel=1e-9)
    assert best_temperature(logits / 2, gold) == pytest.approx(0.5, rel=1e-9)


def test_no_other_temperature_is_better() -> None:
    rng = np.random.default_rng(1)
    logits, gold = rng.normal(size=(200, 6)) * 4, rng.integers(0, 6, 200)
    gold[:120] = logits[:120].argmax(axis=1)
    best = best_temperature(logits, gold)
    least = mean_nats(logits / best, gold)
    assert all(mean_nats(logits / (best * factor), gold) > least for factor in (0.5, 0.98, 1.02, 2.0))


def test_without_a_minimum_the_bounds() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert best_temperature(logits, np.array([0, 1])) == COLDEST
    assert best_temperature(logits, np.array([1, 0])) == HOTTEST


def test_the_report_is_before_and_after() -> None:
    """A model three times too sure: tempering halves at least its error, and never raises its NLL."""
    logits = 3 * np.log(np.array([[0.8, 0.1, 0.1]] * 10 + [[0.3, 0.3, 0.4]] * 10))
    gold = np.array([0] * 8 + [1, 2] + [0] * 3 + [1] * 3 + [2] * 4)
    report = calibrate(logits, gold)
    assert report.tempered_ece < 0.01 < 0.15 < report.ece
    assert report.tempered_nll < report.nll
    assert report.tempered_brier < report.brier
    assert report.nll == pytest.approx(mean_nats(logits, gold))
    assert report.ece == pytest.approx(
        abs(softmax(logits)[0, 0] - 0.8) / 2 + abs(softmax(logits)[-1, 2] - 0.4) / 2
    )
    record = report.as_record()
    assert len(record["bins"]) == 15  # type: ignore[arg-type]
    assert sum(cell["count"] for cell in record["bins"]) == record["examples"] == 20  # type: ignore[attr-defined]


def test_nothing_known_is_a_clear_error() -> None:
    with pytest.raises(InvalidInput, match="calibration needs some"):
        calibrate(np.empty((0, 3)), np.empty(0, dtype=np.int64))
