"""Whether a model is as sure as it is right: calibration errors, Brier score, NLL, and the best temperature.

Guo et al., "On Calibration of Modern Neural Networks" (2017): confidence is the largest probability, and a
bin's error is the distance of its mean confidence from its accuracy. The temperature is the one that fits
this very data best, so the figures after it are what could be reached, not what a new data set will show.
Pure arithmetic on logits [N, I] and right answers int64 [N].
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from bithaul.errors import InvalidInput

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

BINS = 15
COLDEST, HOTTEST = 0.01, 100.0
_HALVINGS = 60


@dataclass(frozen=True)
class Bin:
    """Requests with a confidence above `low` and up to `high`; means are 0 in an empty bin."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class CalibrationReport:
    """`ece` over 15 bins of equal width, `ece_equal_mass` over 15 of equal count; `nll` in nats a request.

    `brier` sums over all intents (0 to 2, Brier 1950). `tempered_*` are the same with the logits divided by
    `temperature`, which minimises the NLL of this data between 0.01 and 100.
    """

    examples: int
    ece: float
    ece_equal_mass: float
    brier: float
    nll: float
    temperature: float
    tempered_ece: float
    tempered_ece_equal_mass: float
    tempered_brier: float
    tempered_nll: float
    bins: tuple[Bin, ...]

    def as_record(self) -> dict[str, object]:
        """JSON keys, figures with six digits."""
        record = {
            key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()
        }
        record["bins"] = [{k: round(v, 6) for k, v in asdict(entry).items()} for entry in self.bins]
        return record


def calibrate(logits: Floats, gold: Ids) -> CalibrationReport:
    """Judge N requests. Raises `InvalidInput` without any."""
    if not len(gold):
        raise InvalidInput("No request has an intent that the model knows; calibration needs some.")
    temperature = best_temperature(logits, gold)
    plain, tempered = softmax(logits), softmax(logits / temperature)
    return CalibrationReport(
        examples=len(gold),
        ece=expected_error(*judged(plain, gold)),
        ece_equal_mass=expected_error(*judged(plain, gold), equal_mass=True),
        brier=brier_score(plain, gold),
        nll=mean_nats(logits, gold),
        temperature=temperature,
        tempered_ece=expected_error(*judged(tempered, gold)),
        tempered_ece_equal_mass=expected_error(*judged(tempered, gold), equal_mass=True),
        tempered_brier=brier_score(tempered, gold),
        tempered_nll=mean_nats(logits / temperature, gold),
        bins=equal_width_bins(*judged(plain, gold)),
    )


def softmax(logits: Floats) -> Floats:
    """[N, I] to probabilities [N, I]."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = raised / raised.sum(axis=1, keepdims=True)
    return found


def judged(probabilities: Floats, gold: Ids) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Confidence [N] of the most probable intent, and whether it is right [N]."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == gold


def equal_width_bins(
    confidence: Floats, right: npt.NDArray[np.bool_], *, bins: int = BINS
) -> tuple[Bin, ...]:
    """Bins ((m - 1) / M, m / M]; a confidence of 0 is in the first."""
    places = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    shares = np.maximum(counts, 1)
    sure = np.bincount(places, confidence, minlength=bins) / shares
    hits = np.bincount(places, right, minlength=bins) / shares
    return tuple(
        Bin(m / bins, (m + 1) / bins, int(counts[m]), float(sure[m]), float(hits[m])) for m in range(bins)
    )


def expected_error(
    confidence: Floats, right: npt.NDArray[np.bool_], *, bins: int = BINS, equal_mass: bool = False
) -> float:
    """ECE: |mean confidence - accuracy| of each bin, weighted by how many requests are in it.

    With `equal_mass` the requests, sorted by confidence, are cut into bins of equal count.
    """
    if equal_mass:
        order = np.argsort(confidence, kind="stable")
        parts = np.array_split(order, bins)
        gaps = [abs(float(confidence[part].sum() - right[part].sum())) for part in parts]
        return sum(gaps) / len(confidence)
    cells = equal_width_bins(confidence, right, bins=bins)
    return sum(cell.count * abs(cell.confidence - cell.accuracy) for cell in cells) / len(confidence)


def brier_score(probabilities: Floats, gold: Ids) -> float:
    """Mean over requests of the squared distance from the right answer, summed over intents."""
    off = probabilities.copy()
    off[np.arange(len(gold)), gold] -= 1.0
    return float((off**2).sum(axis=1).mean())


def mean_nats(logits: Floats, gold: Ids) -> float:
    """Mean -log p of the right intent."""
    top = logits.max(axis=1, keepdims=True)
    sums = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    return float((sums - logits[np.arange(len(gold)), gold]).mean())


def best_temperature(logits: Floats, gold: Ids) -> float:
    """The temperature between 0.01 and 100 that minimises `mean_nats(logits / temperature, gold)`.

    The NLL is convex in 1 / temperature; its slope, mean expected logit minus mean right logit, is halved in
    on. Answers that are all right have no best temperature and give the coldest, hopeless ones the hottest.
    """
    chosen = logits[np.arange(len(gold)), gold]

    def slope(inverse: float) -> float:
        return float(((softmax(logits * inverse) * logits).sum(axis=1) - chosen).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)
