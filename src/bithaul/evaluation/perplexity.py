"""How well a model predicts text: perplexity with what it needs to mean something.

A perplexity depends on the vocabulary, on how much text that vocabulary does not know, and on the context a
token is given; the report holds all three, bits per byte, and the n-gram floor on the same tokens. Every
counted token is predicted exactly once, the end of a line included. Probabilities below `floor` are raised to
it, not renormalised: distributions then sum to slightly more than 1, by `floor_mass` on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from bithaul.errors import InvalidInput
from bithaul.evaluation.documents import Framed
from bithaul.evaluation.kneser_ney import KneserNey
from bithaul.evaluation.predict import Floats, predict
from bithaul.inference.loader import LoadedModel

DEFAULT_FLOOR = 1e-6
ORDER = 4

_LARGEST = 700.0  # of an exponent


@dataclass(frozen=True)
class Floor:
    """The n-gram model on the same tokens, with the same probability floor."""

    perplexity: float
    perplexity_known: float
    perplexity_unfloored: float
    word_perplexity: float
    bits_per_byte: float
    order: int
    train_tokens: int


@dataclass(frozen=True)
class PerplexityReport:
    """Shares are between 0 and 1.

    `perplexity` counts `[UNK]` as one more token of the vocabulary, `perplexity_known` leaves it out.
    `word_perplexity` is per word and line end, however many tokens a word has. `bits_per_byte` charges an
    `[UNK]` its own probability only, so its spelling is free; `bits_per_byte_spelled` adds 8 bits for every
    byte of that spelling. Both are over the bytes of the original text with its line ends, while the model
    predicts the normal form (lower case, single spaces).
    """

    documents: int
    tokens: int
    words: int
    bytes: int
    vocabulary: int
    unknown_tokens: int
    unknown_share: float
    unknown_word_share: float
    perplexity: float
    perplexity_known: float
    perplexity_unfloored: float
    word_perplexity: float
    bits_per_byte: float
    bits_per_byte_spelled: float
    floor: float
    floored_tokens: int
    floored_share: float
    floor_mass: float
    context: int
    stride: int
    framing: str
    kneser_ney: Floor | None
    ratio: float | None  # perplexity to that of the n-gram model

    def as_record(self) -> dict[str, object]:
        """The stable keys of `bithaul evaluate perplexity --json`."""
        record = _rounded(asdict(self))
        if self.kneser_ney is not None:
            record["kneser_ney"] = _rounded(asdict(self.kneser_ney))
        return record


def evaluate_perplexity(
    model: LoadedModel,
    text: Framed,
    *,
    train: Framed | None = None,
    floor: float = DEFAULT_FLOOR,
    stride: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> PerplexityReport:
    """Predict `text`; `train`, framed by the same tokenizer, is what the n-gram floor learns from.

    A window holds the model's context. Each next one moves on by `stride` tokens (None: half the context) and
    scores only those; `stride` equal to the context cuts the text into pieces as training does. `floor` 0
    raises no probability. `on_progress` hears how many tokens are predicted. Raises `InvalidInput` for a
    floor of 1 / V or more, or a stride outside the context.
    """
    context, vocabulary = model.config.context_length, model.tokenizer.vocab_size
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise InvalidInput(f"The stride must be 1 to {context} (the model's context), not {stride}.")
    if not 0 <= floor < 1 / vocabulary:
        raise InvalidInput(
            f"The floor must be at least 0 and below 1 / vocabulary = {1 / vocabulary:.2g}, not {floor:g}."
        )
    found = predict(model.network, text, stride=stride, floor=floor, on_progress=on_progress)
    unknown = text.predicted == model.tokenizer.unk
    floored = Surprise.of(np.maximum(found.probabilities, floor), unknown)
    touched = int((found.probabilities < floor).sum())
    base = None if train is None else _n_gram(train, text, unknown, vocabulary, floor)
    bits = floored.total / math.log(2)
    return PerplexityReport(
        documents=text.documents,
        tokens=len(unknown),
        words=text.words,
        bytes=text.bytes,
        vocabulary=vocabulary,
        unknown_tokens=int(unknown.sum()),
        unknown_share=float(unknown.mean()),
        unknown_word_share=text.unknown_words / text.words,
        perplexity=floored.perplexity,
        perplexity_known=floored.perplexity_known,
        perplexity_unfloored=Surprise.of(found.probabilities, unknown).perplexity,
        word_perplexity=_exp(floored.total / (text.words + text.documents)),
        bits_per_byte=bits / text.bytes,
        bits_per_byte_spelled=(bits + 8 * text.unknown_bytes) / text.bytes,
        floor=floor,
        floored_tokens=touched,
        floored_share=touched / len(unknown),
        floor_mass=float(found.added.mean()),
        context=context,
        stride=stride,
        framing=text.framing,
        kneser_ney=base,
        ratio=None if base is None else floored.perplexity / base.perplexity,
    )


@dataclass(frozen=True)
class Surprise:
    """Negative log-likelihood in nats, of all tokens and of the known ones."""

    total: float
    tokens: int
    known: float
    known_tokens: int

    @classmethod
    def of(cls, probabilities: Floats, unknown: npt.NDArray[np.bool_]) -> Surprise:
        nats = -np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
        return cls(float(nats.sum()), len(nats), float(nats[~unknown].sum()), int((~unknown).sum()))

    @property
    def perplexity(self) -> float:
        return _exp(self.total / self.tokens)

    @property
    def perplexity_known(self) -> float:
        return _exp(self.known / max(self.known_tokens, 1))


def _n_gram(
    train: Framed, text: Framed, unknown: npt.NDArray[np.bool_], vocabulary: int, floor: float
) -> Floor:
    learned = train.predicted
    found = KneserNey.fit(learned, vocab_size=vocabulary, order=ORDER).probabilities(text.predicted)
    floored = Surprise.of(np.maximum(found, floor), unknown)
    return Floor(
        perplexity=floored.perplexity,
        perplexity_known=floored.perplexity_known,
        perplexity_unfloored=Surprise.of(found, unknown).perplexity,
        word_perplexity=_exp(floored.total / (text.words + text.documents)),
        bits_per_byte=floored.total / math.log(2) / text.bytes,
        order=ORDER,
        train_tokens=len(learned),
    )


def _exp(nats: float) -> float:
    return math.exp(min(nats, _LARGEST))


def _rounded(record: dict[str, object]) -> dict[str, object]:
    """Six digits after the point, or six that count where the value is small."""
    return {
        key: (round(value, 6) if abs(value) >= 0.1 else float(f"{value:.6g}"))
        if isinstance(value, float)
        else value
        for key, value in record.items()
    }
