"""How well a score tells two groups apart: AUROC, average precision, false alarms at a given recall.

"Positive" is what the score should be high for. Pure arithmetic on float64 arrays, ties counted as what they
are. Fawcett, "An introduction to ROC analysis" (2006); average precision without interpolation between points
(Davis and Goadrich 2006 on why not).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bithaul.errors import InvalidInput

Floats = npt.NDArray[np.float64]


def auroc(positive: Floats, negative: Floats) -> float:
    """Probability that a positive [P] scores above a negative [N], equal scores counting half."""
    _require(positive, negative)
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    up_to = np.searchsorted(ordered, positive, side="right")
    return float((below + up_to).sum() / 2 / (len(positive) * len(negative)))


def average_precision(positive: Floats, negative: Floats) -> float:
    """Precision averaged over the recall it is reached at (AUPR); equal scores are one threshold."""
    hits, alarms = _thresholds(positive, negative)
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / (hits + alarms)).sum() / len(positive))


def false_alarms_at(recall: float, positive: Floats, negative: Floats) -> float:
    """Share of the negatives at or above the highest threshold that finds `recall` of the positives."""
    hits, alarms = _thresholds(positive, negative)
    enough = int(np.argmax(hits >= recall * len(positive) - 1e-9))
    return float(alarms[enough] / len(negative))


def _thresholds(positive: Floats, negative: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many of each group reach each distinct score, from the highest score down."""
    _require(positive, negative)
    steps = np.unique(np.concatenate([positive, negative]))[::-1]
    hits = len(positive) - np.searchsorted(np.sort(positive), steps, side="left")
    alarms = len(negative) - np.searchsorted(np.sort(negative), steps, side="left")
    return hits.astype(np.int64), alarms.astype(np.int64)


def _require(positive: Floats, negative: Floats) -> None:
    if not len(positive) or not len(negative):
        raise InvalidInput("Two groups are needed to tell them apart; give requests of both kinds.")
