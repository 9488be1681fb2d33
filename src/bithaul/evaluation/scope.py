"""Out of scope or not: scores for how little a request is the model's business, and how well they rank.

A score is high for requests that are out of scope; it is a pure function of how the model reads a batch of
requests, and `SCORES` names them all. None is trained or tuned on the data it is measured on. Sources: the
largest probability, Hendrycks and Gimpel (2017); logits, Hendrycks et al. (2022); energy, Liu et al. (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from bithaul.errors import InvalidInput, UnknownName
from bithaul.evaluation.ranking import auroc, average_precision, false_alarms_at
from bithaul.inference.classify import out_of_scope_intent
from bithaul.inference.reading import Reading

Floats = npt.NDArray[np.float64]

TEXT_WEIGHT = 0.1
RECALL = 0.95


@dataclass(frozen=True)
class Readings:
    """N requests: logits of all intents [N, I], which of these are in scope [I], nats per text token [N]."""

    logits: Floats
    in_scope: npt.NDArray[np.bool_]
    text_nats: Floats

    @classmethod
    def of(cls, readings: Sequence[Reading], intents: Sequence[str]) -> Readings:
        """Raises `InvalidInput` without readings."""
        if not readings:
            raise InvalidInput("There are no requests to judge; give data with at least one.")
        none = out_of_scope_intent(intents)
        return cls(
            np.array([reading.logits for reading in readings], dtype=np.float64),
            np.array([intent != none for intent in intents]),
            np.array([reading.text_nats for reading in readings], dtype=np.float64),
        )

    def chosen(self, rows: npt.NDArray[np.integer]) -> Readings:
        """The requests of these rows."""
        return Readings(self.logits[rows], self.in_scope, self.text_nats[rows])

    @property
    def log_probabilities(self) -> Floats:
        """Of all intents, [N, I]."""
        found: Floats = self.logits - _log_sum_exp(self.logits)[:, None]
        return found

    @property
    def surest(self) -> Floats:
        """Log of the largest probability of an intent in scope, among all intents, [N]."""
        found: Floats = self.log_probabilities[:, self.in_scope].max(axis=1)
        return found


def max_probability(readings: Readings) -> Floats:
    """1 - the largest probability of an intent in scope, not renormalised: what is left is doubt, or the
    probability of being out of scope."""
    rest = np.exp(readings.log_probabilities)  # summed without the largest: 1 - p would lose small doubts
    surest = np.where(readings.in_scope, rest, -1.0).argmax(axis=1)
    rest[np.arange(len(rest)), surest] = 0.0
    found: Floats = rest.sum(axis=1)
    return found


def out_of_scope_probability(readings: Readings) -> Floats:
    """Probability of the model's own out-of-scope intent; 0 for a model without one."""
    found: Floats = np.exp(readings.log_probabilities[:, ~readings.in_scope]).sum(axis=1)
    return found


def entropy(readings: Readings) -> Floats:
    """Probability of being out of scope, plus the entropy in nats of the intents in scope, renormalised."""
    inside = readings.logits[:, readings.in_scope]
    logs = inside - _log_sum_exp(inside)[:, None]
    found: Floats = out_of_scope_probability(readings) - (np.exp(logs) * logs).sum(axis=1)
    return found


def max_logit(readings: Readings) -> Floats:
    """Minus the largest logit of an intent in scope: small for words that mean nothing to the model."""
    found: Floats = -readings.logits[:, readings.in_scope].max(axis=1)
    return found


def energy(readings: Readings) -> Floats:
    """Minus the log-sum-exp of the logits in scope."""
    return -_log_sum_exp(readings.logits[:, readings.in_scope])


def text(readings: Readings) -> Floats:
    """How unusual the words are to the same model: mean -log p of a token."""
    return readings.text_nats


def doubt_and_text(readings: Readings) -> Floats:
    """-log of the largest probability in scope, plus 0.1 times the mean -log p of a token."""
    return TEXT_WEIGHT * readings.text_nats - readings.surest


SCORES: Mapping[str, Callable[[Readings], Floats]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            max_probability,
            out_of_scope_probability,
            entropy,
            max_logit,
            energy,
            text,
            doubt_and_text,
        )
    }
)


def score_named(name: str) -> Callable[[Readings], Floats]:
    """One of `SCORES`. Raises `UnknownName`."""
    if name not in SCORES:
        raise UnknownName(f"There is no score {name!r}; choose one of {', '.join(SCORES)}.")
    return SCORES[name]


@dataclass(frozen=True)
class OutOfScopeReport:
    """How well `score` ranks requests out of scope, the positives, above those in scope.

    `aupr` is average precision (chance: the share of requests out of scope); `fpr_at_95_tpr` the share of
    requests in scope that are refused where 95 % of those out of scope are. `candidates` holds the AUROC of
    every score of `SCORES`.
    """

    score: str
    auroc: float
    aupr: float
    fpr_at_95_tpr: float
    in_scope: int
    out_of_scope: int
    candidates: Mapping[str, float]

    def as_record(self) -> dict[str, object]:
        """JSON keys, shares with six digits."""
        return {
            "score": self.score,
            "auroc": round(self.auroc, 6),
            "aupr": round(self.aupr, 6),
            "fpr_at_95_tpr": round(self.fpr_at_95_tpr, 6),
            "in_scope": self.in_scope,
            "out_of_scope": self.out_of_scope,
            "candidates": {name: round(value, 6) for name, value in self.candidates.items()},
        }


def rank_scope(
    readings: Readings, outside: npt.NDArray[np.bool_], *, score: str | None = None
) -> OutOfScopeReport | None:
    """Compare N requests by whether they are `outside` (bool [N]).

    None when all are on one side, or when the model has no intent in scope. Without a `score`, the model's
    own out-of-scope intent decides where it has one, the largest probability elsewhere. Raises `UnknownName`.
    """
    if score is None:
        score = "max_probability" if readings.in_scope.all() else "out_of_scope_probability"
    score_named(score)
    if outside.all() or not outside.any() or not readings.in_scope.any():
        return None
    values = {name: function(readings) for name, function in SCORES.items()}
    found = {name: auroc(value[outside], value[~outside]) for name, value in values.items()}
    high, low = values[score][outside], values[score][~outside]
    return OutOfScopeReport(
        score=score,
        auroc=found[score],
        aupr=average_precision(high, low),
        fpr_at_95_tpr=false_alarms_at(RECALL, high, low),
        in_scope=len(low),
        out_of_scope=len(high),
        candidates=MappingProxyType(found),
    )


def _log_sum_exp(logits: Floats) -> Floats:
    """[N, I] to [N]."""
    top = logits.max(axis=1, keepdims=True)
    found: Floats = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    return found
