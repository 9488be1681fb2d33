"""Everything `bithaul evaluate intents` reports: answers, out of scope, calibration, clean against noisy.

The model reads every request once, and once more for each level of noise. Figures of `IntentReport` are about
the data alone; extra requests out of scope count only for telling what is in scope from what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from bithaul.corpus.example import Example
from bithaul.evaluation.calibration import CalibrationReport, calibrate
from bithaul.evaluation.intents import IntentNames, IntentReport, answers, score
from bithaul.evaluation.robustness import noisy, word_error_rate
from bithaul.evaluation.scope import OutOfScopeReport, Readings, rank_scope
from bithaul.inference.classify import Parse
from bithaul.inference.loader import LoadedModel


@dataclass(frozen=True)
class NoiseReport:
    """The same requests with noise; `word_error_rate` says how much of it, against the clean text."""

    intents: IntentReport
    word_error_rate: float
    changed_share: float

    def as_record(self) -> dict[str, object]:
        record = self.intents.as_record()
        kept = {key: record[key] for key in ("accuracy", "slot_f1", "exact_match")}
        return kept | {
            "word_error_rate": round(self.word_error_rate, 6),
            "changed_share": round(self.changed_share, 6),
        }


@dataclass(frozen=True)
class IntentAudit:
    """`out_of_scope` is None without requests of both kinds, `calibration` without any known intent."""

    intents: IntentReport
    out_of_scope: OutOfScopeReport | None
    calibration: CalibrationReport | None
    noise: Mapping[str, NoiseReport]

    def as_record(self) -> dict[str, object]:
        """The stable keys of `bithaul evaluate intents --json`."""
        return self.intents.as_record() | {
            "out_of_scope": None if self.out_of_scope is None else self.out_of_scope.as_record(),
            "calibration": None if self.calibration is None else self.calibration.as_record(),
            "noise": {level: report.as_record() for level, report in self.noise.items()},
        }


def audit_intents(
    model: LoadedModel,
    examples: Sequence[Example],
    *,
    outside: Sequence[str] = (),
    scope_score: str | None = None,
    noise: Sequence[str] = (),
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> IntentAudit:
    """Measure `model` on `examples`.

    `outside` are texts out of scope beside those that the data names so; `scope_score` is one of
    `scope.SCORES` (None: see `rank_scope`), `noise` some of `noise.LEVELS`. Requests of intents that the
    model does not know are in neither group and not calibrated on. `on_progress` hears how many of the
    `(1 + len(noise)) * len(examples) + len(outside)` requests are read. Raises `InvalidInput` without
    examples or for a model without intents, `UnknownName` for a score or level that does not exist.
    """
    heard = {level: noisy(examples, level, seed=seed) for level in noise}
    clean = [example.text for example in examples]
    done = 0

    def ask(texts: Sequence[str], *, readings: bool) -> list[Parse]:
        nonlocal done
        start = done
        report = None if on_progress is None else lambda count: on_progress(start + count)
        done += len(texts)
        return answers(model, texts, readings=readings, on_progress=report)

    def scored(asked: Sequence[Example], parses: Sequence[Parse]) -> IntentReport:
        return score(asked, parses, known_intents=model.labels.intents, fold=model.tokenizer.fold)

    parses = ask(clean, readings=True)
    report = scored(examples, parses)
    extra = ask(outside, readings=True)
    scope, calibration = _judge(model, examples, parses, extra, scope_score)
    noises = {
        level: NoiseReport(
            scored(changed, ask([example.text for example in changed], readings=False)),
            word_error_rate(clean, [example.text for example in changed]),
            sum(a.text.split() != b.lower().split() for a, b in zip(changed, clean, strict=True))
            / len(clean),
        )
        for level, changed in heard.items()
    }
    return IntentAudit(report, scope, calibration, MappingProxyType(noises))


def _judge(
    model: LoadedModel,
    examples: Sequence[Example],
    parses: Sequence[Parse],
    extra: Sequence[Parse],
    scope_score: str | None,
) -> tuple[OutOfScopeReport | None, CalibrationReport | None]:
    intents = model.labels.intents
    names = IntentNames(intents, model.tokenizer.fold)
    gold = [names.of(example.intent) for example in examples]
    place = {intent: i for i, intent in enumerate(intents)}
    readings = Readings.of([p.reading for p in (*parses, *extra) if p.reading is not None], intents)
    none = np.array([names.is_out_of_scope(example.intent) for example in examples] + [True] * len(extra))
    known = np.array([name in place for name in gold] + [False] * len(extra))
    kept = np.flatnonzero(none | known)
    scope = rank_scope(readings.chosen(kept), none[kept], score=scope_score)
    rows = np.flatnonzero(known)
    if not len(rows):
        return scope, None
    answers_at = np.array([place[gold[row]] for row in rows], dtype=np.int64)
    return scope, calibrate(readings.logits[rows], answers_at)
