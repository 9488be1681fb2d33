"""Truck Mate: held-out requests, the same under speech noise, and two times 100 hand-written ones.

Measures the run in `--dir`, or trains one for each seed with `bithaul up` and measures that. The hand-written
requests are in benchmarks/data and are never trained on. What was wrong of the first 100 is printed: whoever
widens the grammar may read it, so they are a development set. Of the fresh 100 only figures are. Examples:

    python benchmarks/truckmate.py --dir runs/demo
    python benchmarks/truckmate.py --tokens 4e6 --minutes 20 --workers 1 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from bithaul.corpus.example import Example
from bithaul.corpus.importers import read_examples
from bithaul.evaluation.intents import IntentReport, Mistake, evaluate_intents
from bithaul.evaluation.robustness import noisy
from bithaul.inference.loader import LoadedModel, load_model
from own_data import bithaul

HANDWRITTEN = Path(__file__).parent / "data" / "truckmate_handwritten.jsonl"
FRESH = Path(__file__).parent / "data" / "truckmate_fresh.jsonl"
NOISE_SEED = 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument("--dir", type=Path, help="a finished run's folder; without it runs are trained")
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--tokens", type=float, default=4e6, help="trained by each seed")
    found.add_argument("--minutes", type=float, default=20.0, help="most training time of each seed")
    found.add_argument("--workers", type=int, default=1)
    found.add_argument("--preset", default="small")
    found.add_argument("--heldout", type=int, help="only the first N held-out requests")
    found.add_argument("--json", action="store_true", help="accepted and without effect: it is always JSON")
    return found


def measure(directory: Path, *, limit: int | None = None) -> dict[str, object]:
    """The figures of a finished run, `wrong` being the hand-written requests that it got wrong."""
    model = load_model(directory)
    heldout = read_examples(directory / "corpus" / "heldout.jsonl")[:limit]
    found = {f"heldout_{key}": value for key, value in figures(model, heldout)[0].items()}
    for level in ("light", "heavy"):
        scores, _ = figures(model, noisy(heldout, level, seed=NOISE_SEED))
        found |= {f"{level}_noise_{key}": value for key, value in scores.items()}
    scores, _ = figures(model, read_examples(FRESH))
    found |= {f"fresh_{key}": value for key, value in scores.items()}
    scores, report = figures(model, read_examples(HANDWRITTEN))
    found |= {f"handwritten_{key}": value for key, value in scores.items()}
    return {**found, "heldout_examples": len(heldout), "wrong": [told(m) for m in report.mistakes]}


def figures(model: LoadedModel, examples: list[Example]) -> tuple[dict[str, float], IntentReport]:
    report = evaluate_intents(model, examples)
    scores = {"intent": report.accuracy, "slot_f1": report.slot_f1 or 0.0, "exact": report.exact_match}
    return {key: round(value, 4) for key, value in scores.items()}, report


def told(mistake: Mistake) -> dict[str, object]:
    """A wrong request: what it means, and what the model took it for."""
    parse = mistake.parse
    return {**mistake.example.as_record(), "answer": {"intent": parse.intent, "slots": dict(parse.slots)}}


def train_and_measure(args: argparse.Namespace, seed: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        up = bithaul(
            *("up", "--dir", folder, "--preset", args.preset, "--seed", str(seed)),
            *("--workers", str(args.workers), "--budget-tokens", str(int(args.tokens))),
            *("--budget-minutes", str(args.minutes)),
        )
        about = {"seed": seed, "tokens": up["tokens"], "minutes": round(up["seconds"] / 60, 2)}
        return {**about, **measure(Path(folder), limit=args.heldout)}


def summary(rows: list[dict[str, object]]) -> dict[str, float]:
    """Mean of each measure over the seeds and, of several, the distance between the best and the worst."""
    found: dict[str, float] = {}
    for key in (key for key in rows[0] if key.endswith(("_intent", "_slot_f1", "_exact"))):
        values = [float(str(row[key])) for row in rows]
        found[key] = round(statistics.fmean(values), 4)
        if len(values) > 1:
            found[f"{key}_spread"] = round(max(values) - min(values), 4)
    return found


def main() -> None:
    options = parser()
    args = options.parse_args()
    if args.dir is not None and not (args.dir / "corpus" / "heldout.jsonl").is_file():
        options.error(f"{args.dir} holds no corpus/heldout.jsonl; name the folder of a run of `bithaul up`.")
    rows = []
    for seed in args.seeds if args.dir is None else [None]:
        row = measure(args.dir, limit=args.heldout) if seed is None else train_and_measure(args, seed)
        for wrong in row.pop("wrong"):  # type: ignore[attr-defined]
            print(json.dumps({"wrong": wrong, "seed": seed}, ensure_ascii=False), flush=True)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps({"preset": args.preset, **summary(rows), "rows": rows}))


if __name__ == "__main__":
    main()
