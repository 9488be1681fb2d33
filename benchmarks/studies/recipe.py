"""One process trains a corpus for a token budget and reports intent accuracy: how recipes are compared.

Greedy on the intent token alone (the prompt and the label's opening are given), so it needs no decoder.
Prints progress as JSON lines; the last line is the result. Example:

    python benchmarks/studies/recipe.py --train train.tsv --valid valid.tsv --recipe '{"peak_lr": 3e-3}'
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch

from bithaul.corpus.importers import read_any
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.model.config import load_config
from bithaul.training.batches import pack
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import StepReport, Trainer

PIECE_EXAMPLES = 2_048


def intent_accuracy(trainer: Trainer, examples: list[np.ndarray], intents: set[int], label: int) -> float:
    """Share of examples whose intent token is the argmax over all intent tokens at its place."""
    allowed = torch.tensor(sorted(intents))
    right = 0
    for start in range(0, len(examples), 128):
        group = examples[start : start + 128]
        batch = pack(group, label_token=label, text_loss_weight=1.0)
        assert batch is not None
        with torch.no_grad():
            hidden = trainer.model.packed(batch.input_ids, batch.segments)
            offset = 0
            for example in group:
                place = next(i for i in range(len(example)) if int(example[i]) in intents)
                logits = trainer.model.logits(hidden[offset + place - 1])[allowed]
                right += int(allowed[int(logits.argmax())]) == int(example[place])
                offset += len(example) - 1
    return right / len(examples)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--tokens", type=float, default=3e6)
    parser.add_argument("--stop-at", type=float, default=1.0, help="stop at this share of the budget")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default="{}", help="JSON with recipe fields to replace")
    args = parser.parse_args()

    train, valid = read_any(args.train), read_any(args.valid)
    tokenizer = Tokenizer.train(train)
    encoded = [np.array(e, dtype=np.int32) for e in tokenizer.encode_many(train)]
    held = [np.array(e, dtype=np.int32) for e in tokenizer.encode_many(valid)]
    intents = _intent_ids(encoded, tokenizer)
    config = load_config(args.preset, vocab_size=tokenizer.vocab_size)
    recipe = TrainingRecipe.for_preset(args.preset, "intents").model_copy(update=json.loads(args.recipe))
    trainer = Trainer(config, recipe, label_token=tokenizer.intent, threads=args.threads)
    print(
        json.dumps({"recipe": recipe.model_dump(), "vocab": config.vocab_size, "path": trainer.path.reason})
    )

    order = random.Random(args.seed)
    done, started, shown = 0, time.perf_counter(), 0.0
    pending: list[np.ndarray] = []
    budget = int(args.tokens)
    result: dict[str, object] = {}
    while done < budget * args.stop_at:
        if len(pending) < PIECE_EXAMPLES:
            pending += order.sample(encoded, len(encoded))
        piece, pending = pending[:PIECE_EXAMPLES], pending[PIECE_EXAMPLES:]
        size = sum(len(e) - 1 for e in piece)

        def go_on(report: StepReport, before: int = done) -> bool:
            return before + report.tokens < budget

        outcome = trainer.train(
            piece,
            progress_start=done / budget,
            progress_end=(done + size) / budget,
            seed=done,
            on_step=go_on,
        )
        done += outcome.tokens
        if done / budget >= shown + 0.1 or done >= budget * args.stop_at:
            shown = done / budget
            evaluation = trainer.evaluate(held)
            result = {
                "share": round(done / budget, 3),
                "tokens": done,
                "seconds": round(time.perf_counter() - started, 1),
                "train_loss": round(outcome.loss_mean, 4),
                "heldout_loss": round(evaluation.loss, 4),
                "intent_accuracy": round(intent_accuracy(trainer, held, intents, tokenizer.intent), 4),
                "dropped": outcome.dropped_steps,
            }
            print(json.dumps(result), flush=True)


def _intent_ids(encoded: list[np.ndarray], tokenizer: Tokenizer) -> set[int]:
    """The token two after the label token: `[INTENT]`, the opening, then the intent as one token."""
    return {int(e[list(e).index(tokenizer.intent) + 2]) for e in encoded[:50_000]}


if __name__ == "__main__":
    main()
