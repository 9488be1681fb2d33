"""After training: publish the newest model and evaluate it on the held-out data.

A model of requests is scored on them and answers one; a model of plain text is asked how well it predicts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from bithaul.cli.local.folder import RunFolder, RunSpec
from bithaul.coordinator.commands.publish_model import publish_model
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.queries.progress import ProgressView
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.build import HELDOUT_RECORDS
from bithaul.corpus.example import Example, TextLine
from bithaul.corpus.importers import read_any
from bithaul.evaluation.documents import frame
from bithaul.evaluation.intents import evaluate_intents
from bithaul.evaluation.perplexity import evaluate_perplexity
from bithaul.inference.classify import classify
from bithaul.inference.loader import LoadedModel, load_model

Say = Callable[[str], None]

TRUCK_MATE_QUESTION = "uh breaker one nine take me to the flying j in dallas please"


def result_of(
    folder: RunFolder, spec: RunSpec, view: ProgressView, *, ask: str | None, say: Say
) -> dict[str, object]:
    """The last line of `up`: stable keys, null for what the data does not have."""
    losses = [p.train_loss for p in view.series if p.train_loss is not None]
    heldout = [p.heldout_loss for p in view.series if p.heldout_loss is not None]
    result: dict[str, object] = {
        "run": view.run,
        "dir": str(folder.root),
        "preset": spec.preset,
        "state": view.state.value,
        "tokens": view.tokens,
        "versions": view.versions,
        "workers": spec.workers,
        "seconds": round(view.seconds, 1),
        "train_loss_first": _rounded(losses[0] if losses else None),
        "train_loss_last": _rounded(losses[-1] if losses else None),
        "heldout_loss": _rounded(heldout[-1] if heldout else None),
        "intent_accuracy": None,
        "slot_f1": None,
        "exact_match": None,
        "perplexity": None,
        "heldout_examples": None,
        "tokens_per_second": round(view.tokens / view.seconds, 1) if view.seconds else None,
        "updates_by_worker": {worker.name: worker.accepted for worker in view.workers},
    }
    with closing(open_coordinator(load_settings(folder.root))) as coordinator:
        publish_model(coordinator, corpus=folder.corpus, folder=folder.model)
    records = folder.corpus / HELDOUT_RECORDS
    if records.is_file():
        result |= _evaluate(load_model(folder.root), read_any(records), spec, ask, say)
    return result


def _evaluate(
    model: LoadedModel, items: list[Example] | list[TextLine], spec: RunSpec, ask: str | None, say: Say
) -> dict[str, object]:
    examples = [item for item in items if isinstance(item, Example)]
    if not examples:
        say(f"predicting {len(items):,} held-out lines")
        text = frame(model.tokenizer, [item.text for item in items], requests=False)
        perplexity = evaluate_perplexity(model, text).perplexity
        return {"perplexity": round(perplexity, 2), "heldout_examples": len(items)}
    say(f"evaluating on {len(examples):,} held-out examples")
    report = evaluate_intents(model, examples)
    result: dict[str, object] = {
        "intent_accuracy": _rounded(report.accuracy),
        "slot_f1": _rounded(report.slot_f1),
        "exact_match": _rounded(report.exact_match),
        "heldout_examples": report.examples,
    }
    question = ask or (TRUCK_MATE_QUESTION if spec.train is None else examples[0].text)
    parse = classify(model, [question])[0]
    say(f"you: {question}\nmodel: {parse.to_json()}")
    return result | {"asked": {"text": question, "intent": parse.intent, "slots": dict(parse.slots)}}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
