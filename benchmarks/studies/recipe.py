"""Compare recipes: one process trains a corpus folder for a token budget and is scored on the held-out set.

The folder is one of `bithaul corpus tokenize` or the `corpus` folder of a run. The score is the product's own
evaluation (grammar, decoding, spelling); for plain text it is the perplexity of the held-out text. Several
recipes run one after the other; each prints its result as a JSON line, the last line is all of them. Example:

    python benchmarks/studies/recipe.py runs/demo/corpus --tokens 1e6 --recipe '{}' '{"peak_lr": 2e-3}'
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bithaul.corpus.build import HELDOUT_RECORDS, LABELS, MANIFEST, TOKENIZER, CorpusManifest
from bithaul.corpus.example import Example, TextLine
from bithaul.corpus.importers import read_any
from bithaul.corpus.labels import LabelSet
from bithaul.corpus.shards import Shard
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.evaluation.documents import frame
from bithaul.evaluation.intents import evaluate_intents
from bithaul.evaluation.perplexity import evaluate_perplexity
from bithaul.inference.loader import LoadedModel, network_of
from bithaul.model.checkpoint import Checkpoint, save_checkpoint
from bithaul.model.config import load_config
from bithaul.model.init import initial_vector
from bithaul.training.recipe import CorpusKind, TrainingRecipe
from bithaul.training.trainer import StepReport, Trainer

PIECE_EXAMPLES = 2_048


@dataclass(frozen=True)
class Folder:
    train: list[npt.NDArray[np.int32]]
    heldout: list[npt.NDArray[np.int32]]
    examples: list[Example] | list[TextLine]
    tokenizer: Tokenizer
    labels: LabelSet
    kind: CorpusKind

    @classmethod
    def open(cls, path: Path, *, heldout: int) -> Folder:
        manifest = CorpusManifest.model_validate_json((path / MANIFEST).read_text())
        examples = read_any(path / HELDOUT_RECORDS)
        chosen = random.Random(0).sample(range(len(examples)), min(heldout, len(examples)))
        held = [e for info in manifest.heldout for e in _read(path, info.id)]
        return cls(
            [e for info in manifest.shards for e in _read(path, info.id)],
            held[:512],
            [examples[i] for i in chosen],
            Tokenizer.load(path / TOKENIZER),
            LabelSet.load(path / LABELS),
            manifest.kind,
        )


def _read(directory: Path, name: str) -> list[npt.NDArray[np.int32]]:
    shard = Shard.open(directory / f"{name}.bin", directory / f"{name}.idx")
    return [np.array(e) for e in shard.slice(0, len(shard))]


def train(
    folder: Folder, recipe: TrainingRecipe, args: argparse.Namespace, *, seed: int, save: Path | None
) -> dict[str, object]:
    config = load_config(args.preset, vocab_size=folder.tokenizer.vocab_size, ternary=not args.twin)
    trainer = Trainer(
        config, recipe, label_token=folder.tokenizer.intent, threads=args.threads, path=args.path
    )
    trainer.load(initial_vector(config, seed=seed))
    order, budget, done = random.Random(seed), int(args.tokens), 0
    pending: list[npt.NDArray[np.int32]] = []
    started, loss = time.perf_counter(), float("nan")
    while done < budget:
        if len(pending) < PIECE_EXAMPLES:
            pending += order.sample(folder.train, len(folder.train))
        piece, pending = pending[:PIECE_EXAMPLES], pending[PIECE_EXAMPLES:]
        size = sum(len(e) - 1 for e in piece)

        def go_on(report: StepReport, before: int = done) -> bool:
            return before + report.tokens < budget

        outcome = trainer.train(
            piece,
            progress_start=done / budget,
            progress_end=min(1.0, (done + size) / budget),
            seed=seed + done,
            on_step=go_on,
        )
        done, loss = done + outcome.tokens, outcome.loss_mean
        print(
            f"\r{done:,} tokens, loss {loss:.4f}, {done / (time.perf_counter() - started):,.0f}/s",
            end=" ",
            file=sys.stderr,
        )
    seconds = time.perf_counter() - started
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        save_checkpoint(save / "model.safetensors", trainer.vector(), config, metadata={})
        folder.tokenizer.save(save / TOKENIZER)
        folder.labels.save(save / LABELS)
    heldout = trainer.evaluate(folder.heldout).loss
    network = network_of(Checkpoint(config, trainer.vector(), {}), args.folder)
    return {
        "tokens": done,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(done / seconds),
        "train_loss": round(loss, 4),
        "heldout_loss": round(heldout, 4),
        **score(LoadedModel(network, folder.tokenizer, folder.labels), folder.examples),
    }


def score(model: LoadedModel, examples: list[Example] | list[TextLine]) -> dict[str, object]:
    """How good the model is at what its corpus is for."""
    texts = [e.text for e in examples if isinstance(e, TextLine)]
    if texts:
        found = evaluate_perplexity(model, frame(model.tokenizer, texts, requests=False))
        return {"perplexity": round(found.perplexity, 2), "unknown_share": round(found.unknown_share, 4)}
    report = evaluate_intents(model, [e for e in examples if isinstance(e, Example)])
    slots = sorted(report.per_slot, key=lambda s: s.f1 * 1.0)
    return {
        "intent_accuracy": round(report.accuracy, 4),
        "slot_f1": None if report.slot_f1 is None else round(report.slot_f1, 4),
        "exact_match": round(report.exact_match, 4),
        "worst_slots": {s.slot: round(s.f1, 3) for s in slots[:8]},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--tokens", type=float, default=1e6)
    parser.add_argument("--heldout", type=int, default=1000, help="held-out requests to classify")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--save", type=Path, help="folder for the trained models: SAVE/recipe-number/seed")
    parser.add_argument("--path", help="compute path such as cuda; default the fastest")
    parser.add_argument("--twin", action="store_true", help="without quantisers, in fp32")
    parser.add_argument("--recipe", nargs="+", default=["{}"], help="JSON with recipe fields to replace")
    args = parser.parse_args()
    folder = Folder.open(args.folder, heldout=args.heldout)
    results = []
    for number, changes in enumerate(args.recipe):
        recipe = TrainingRecipe.for_preset(args.preset, folder.kind).changed(json.loads(changes))
        for seed in args.seeds:
            found = train(folder, recipe, args, seed=seed, save=args.save and args.save / f"{number}/{seed}")
            results.append({"recipe": json.loads(changes), "seed": seed, **found})
            print(json.dumps(results[-1]), flush=True)
    print(json.dumps({"preset": args.preset, "twin": args.twin, "results": results}))


if __name__ == "__main__":
    main()
