"""How well a model understands requests: accuracy, slot F1, exact match, and where it goes wrong.

Everything is compared in the tokenizer's normal form, so capitals and spacing never count. Slot F1 is micro
over pairs of slot name and value, each element of a list being a pair; it is None where neither the data nor
the model holds any slot. An intent the model does not know is an error like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from bithaul.corpus.example import Example
from bithaul.errors import InvalidInput
from bithaul.evaluation.scores import Counts, f1_score, ratio
from bithaul.inference.classify import OUT_OF_SCOPE_NAMES, Parse, classify, out_of_scope_intent
from bithaul.inference.loader import LoadedModel

_CHUNK = 512


@dataclass(frozen=True)
class IntentScore:
    """One intent: `n` requests of it in the data; `exact` is the share of these right in intent and slots."""

    intent: str
    n: int
    precision: float
    recall: float
    f1: float
    exact: float


@dataclass(frozen=True)
class SlotScore:
    """One slot name: `n` values in the data."""

    slot: str
    n: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    gold: str
    predicted: str
    count: int


@dataclass(frozen=True)
class Mistake:
    """A request whose intent or slots are wrong."""

    example: Example
    parse: Parse


@dataclass(frozen=True)
class IntentReport:
    """Shares are between 0 and 1. `mistakes` and `confusion` keep every wrong request.

    `matrix` counts requests by what they are and what they were taken for, the right ones included.
    """

    accuracy: float
    slot_f1: float | None
    exact_match: float
    examples: int
    per_intent: tuple[IntentScore, ...]
    per_slot: tuple[SlotScore, ...]
    confusion: tuple[Confusion, ...]
    unknown_intents: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    matrix: Mapping[tuple[str, str], int]

    def as_record(self) -> dict[str, object]:
        """The stable keys of `bithaul evaluate intents --json`."""
        return {
            "accuracy": round(self.accuracy, 6),
            "slot_f1": None if self.slot_f1 is None else round(self.slot_f1, 6),
            "exact_match": round(self.exact_match, 6),
            "examples": self.examples,
            "per_intent": {s.intent: _numbers(s) for s in self.per_intent},
            "per_slot": {s.slot: _numbers(s) for s in self.per_slot},
            "confusion": [
                {"gold": c.gold, "predicted": c.predicted, "count": c.count} for c in self.confusion
            ],
            "unknown_intents": list(self.unknown_intents),
        }


class IntentNames:
    """Intent names as the model spells them; the usual names of out-of-scope mean the model's own one."""

    def __init__(self, known: Sequence[str], fold: Callable[[str], str]) -> None:
        self.known = frozenset(known)
        self._fold = fold
        self._by_fold = {fold(name): name for name in known}
        out_of_scope = out_of_scope_intent(known)
        if out_of_scope is not None:
            for alias in OUT_OF_SCOPE_NAMES:
                self._by_fold.setdefault(alias, out_of_scope)

    def of(self, name: str) -> str:
        """The model's spelling of an intent, or `name` itself where the model does not know it."""
        return self._by_fold.get(self._fold(name), name)

    def is_out_of_scope(self, name: str) -> bool:
        """Whether `name` says that a request is none of the model's business."""
        return self._fold(name) in OUT_OF_SCOPE_NAMES


def evaluate_intents(
    model: LoadedModel, examples: Sequence[Example], *, on_progress: Callable[[int], None] | None = None
) -> IntentReport:
    """Classify `examples` and compare. `on_progress` hears how many are done.

    Raises `InvalidInput` without examples or for a model without intents.
    """
    parses = answers(model, [example.text for example in examples], on_progress=on_progress)
    return score(examples, parses, known_intents=model.labels.intents, fold=model.tokenizer.fold)


def answers(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    readings: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> list[Parse]:
    """`classify` in parts. `on_progress` hears how many are done."""
    parses: list[Parse] = []
    for start in range(0, len(texts), _CHUNK):
        parses += classify(model, texts[start : start + _CHUNK], readings=readings)
        if on_progress is not None:
            on_progress(len(parses))
    return parses


def score(
    examples: Sequence[Example],
    parses: Sequence[Parse],
    *,
    known_intents: Sequence[str],
    fold: Callable[[str], str],
) -> IntentReport:
    """Compare parses with their examples; `fold` is the normal form in which they are compared."""
    if not examples:
        raise InvalidInput("There is nothing to evaluate; give data with at least one request.")
    names = IntentNames(known_intents, fold)
    intents, slots = Counts(), Counts()
    exact: Counter[str] = Counter()
    matrix: Counter[tuple[str, str]] = Counter()
    unknown: set[str] = set()
    mistakes: list[Mistake] = []
    for example, parse in zip(examples, parses, strict=True):
        gold, predicted = names.of(example.intent), names.of(parse.intent)
        gold_slots, found_slots = _slots(dict(example.slots), fold), _slots(parse.slots, fold)
        intents.add(Counter([gold]), Counter([predicted]))
        slots.add(_pairs(gold_slots), _pairs(found_slots), key=lambda pair: pair[0])
        if gold not in names.known:
            unknown.add(gold)
        matrix[gold, predicted] += 1
        if gold == predicted and gold_slots == found_slots:
            exact[gold] += 1
        else:
            mistakes.append(Mistake(example, parse))
    right, total = sum(intents.hits.values()), len(examples)
    wrong = {pair: count for pair, count in matrix.items() if pair[0] != pair[1]}
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return IntentReport(
        accuracy=right / total,
        slot_f1=f1_score(sum(slots.hits.values()), sum(slots.gold.values()), sum(slots.found.values())),
        exact_match=sum(exact.values()) / total,
        examples=total,
        per_intent=tuple(
            IntentScore(name, n, *intents.precision_recall_f1(name), ratio(exact[name], n))
            for name, n in ((name, intents.gold[name]) for name in intents.names())
        ),
        per_slot=tuple(
            SlotScore(name, slots.gold[name], *slots.precision_recall_f1(name)) for name in slots.names()
        ),
        confusion=tuple(Confusion(gold, predicted, count) for (gold, predicted), count in ordered),
        unknown_intents=tuple(sorted(unknown)),
        mistakes=tuple(mistakes),
        matrix=MappingProxyType(dict(matrix)),
    )


def _slots(
    slots: Mapping[str, str | Sequence[str]], fold: Callable[[str], str]
) -> dict[str, tuple[str, ...]]:
    return {
        fold(name): (fold(value),) if isinstance(value, str) else tuple(map(fold, value))
        for name, value in slots.items()
    }


def _pairs(slots: Mapping[str, tuple[str, ...]]) -> Counter[tuple[str, str]]:
    return Counter((name, value) for name, values in slots.items() for value in values)


def _numbers(row: IntentScore | SlotScore) -> dict[str, float]:
    return {key: round(value, 6) for key, value in asdict(row).items() if not isinstance(value, str)}
