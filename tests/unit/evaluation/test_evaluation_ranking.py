"""AUROC, average precision and false alarms against pairs and thresholds counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bithaul.errors import InvalidInput
from bithaul.evaluation.ranking import auroc, average_precision, false_alarms_at


def of(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_auroc_counts_pairs() -> None:
    """3 of 4 pairs in order; swapped sides give 1/4."""
    assert auroc(of(0.9, 0.4), of(0.5, 0.1)) == 0.75
    assert auroc(of(0.5, 0.1), of(0.9, 0.4)) == 0.25
    assert auroc(of(2, 3), of(0, 1)) == 1.0


def test_ties_count_half() -> None:
    """Counting ties as hits gives 1 and 5/6, as misses 0 and 1/2."""
    assert auroc(of(1, 1), of(1, 1, 1)) == 0.5
    assert auroc(of(1, 2), of(1, 1, 0)) == pytest.approx((3 + 1 + 2 * 0.5) / 6)


def test_auroc_is_the_share_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    high, low = rng.integers(0, 9, 40).astype(float), rng.integers(-3, 6, 70).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in high for b in low]
    assert auroc(high, low) == pytest.approx(sum(pairs) / len(pairs))


def test_average_precision() -> None:
    """Ranks of the hits 1 and 3: (1/1 + 2/3) / 2. One threshold of equal scores: the share of positives."""
    assert average_precision(of(0.9, 0.4), of(0.5, 0.1)) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(of(1), of(1, 1, 1)) == 0.25
    assert average_precision(of(1, 3), of(1, 2)) == pytest.approx((1 / 1 + 2 / 4) / 2)


def test_false_alarms_at_a_recall() -> None:
    """19 of 20 found are 95 %; the one that is missed must not pull the threshold down."""
    positive = of(*range(10, 29), -100)
    assert false_alarms_at(0.95, positive, of(9, 10, 11, 0)) == 0.5
    assert false_alarms_at(1.0, positive, of(9, 10, 11, 0)) == 1.0
    assert false_alarms_at(0.5, of(1, 2), of(0, 0)) == 0.0


@pytest.mark.parametrize("function", [auroc, average_precision])
def test_one_side_alone_has_no_figure(function: object) -> None:
    for sides in ((of(), of(1)), (of(1), of())):
        with pytest.raises(InvalidInput, match="Two groups"):
            function(*sides)  # type: ignore[operator]
