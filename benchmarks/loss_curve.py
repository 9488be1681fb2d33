"""The fast step learns what the plain one learns: loss curves over 300 steps, the same data, seed by seed.

The plain side is fp32 fake quantisation in eager torch, the definition of the model. Both start from the same
weights and read the same batches. Each seed starts from other weights, so that the distance between the sides
can be compared with the spread between seeds. Writes docs/images/loss_curve.svg.
On a GPU the plain side may run there too. Examples:

    python benchmarks/loss_curve.py --seeds 0 1 2
    python benchmarks/loss_curve.py --preset large --plain-path cuda-fp32 --picture loss_curve_large
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

import chart
from bithaul.model.config import load_config
from bithaul.model.init import initial_vector
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import StepReport, Trainer
from convergence import LABEL_TOKEN, Data, make_data

LAST = 50  # steps over which the final loss is averaged


def curve(job: tuple[str, Data, int, int, bool, str | None]) -> tuple[list[float], float, float]:
    """Training loss of each step, held-out loss at the end, and seconds of training."""
    preset, data, steps, seed, plain, path = job
    torch.set_num_threads(1)
    config = load_config(preset, vocab_size=data.vocab_size)
    recipe = TrainingRecipe.for_preset(preset, "intents")
    trainer = Trainer(config, recipe, label_token=LABEL_TOKEN, threads=1, path=path, plain=plain)
    trainer.load(initial_vector(config, seed=seed))
    losses: list[float] = []

    def note(report: StepReport) -> bool:
        losses.append(report.loss)
        return True

    started = time.perf_counter()
    examples = data.slice(0, steps * recipe.batch_examples, seed=0)
    trainer.train(examples, progress_start=0.0, progress_end=1.0, seed=0, on_step=note)
    seconds = time.perf_counter() - started
    return losses, trainer.evaluate(data.heldout).loss, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="sides at the same time")
    parser.add_argument("--path", help="compute path of our step; default the fastest")
    parser.add_argument("--plain-path", default="fp32+fp32", help="that of the plain one: cuda-fp32 on a GPU")
    parser.add_argument("--picture", default="loss_curve", help="name of the picture in docs/images")
    args = parser.parse_args()
    context = load_config(args.preset, vocab_size=5174).context_length
    data = make_data(examples=12_000, heldout=512, seed=0, max_tokens=context + 1)
    sides = ((False, args.path), (True, args.plain_path))
    jobs = [(args.preset, data, args.steps, seed, *side) for seed in args.seeds for side in sides]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(curve, jobs))
    rows, series = [], {}
    for (_, _, _, seed, plain, _), (losses, heldout, seconds) in zip(jobs, found, strict=True):
        side = "plain" if plain else "fast"
        window = [statistics.fmean(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
        series[f"{side}, seed {seed}"] = list(enumerate(window, start=1))
        rows.append(
            {
                "side": side,
                "seed": seed,
                "train_loss": round(statistics.fmean(losses[-LAST:]), 4),
                "heldout_loss": round(heldout, 4),
                "seconds": round(seconds, 1),
            }
        )
    chart.lines(
        args.picture,
        series,
        title=f"{args.preset}: fast step and plain definition",
        x="step",
        y="training loss, mean of ten steps (nats)",
    )
    print(json.dumps({**_compare(rows), "steps": args.steps, "preset": args.preset, "rows": rows}))


def _compare(rows: list[dict[str, object]]) -> dict[str, object]:
    """Of the sides of a seed: largest distance, and how much the fast one is above the plain one on average;
    and the distance between the best and the worst plain seed.
    """
    found: dict[str, object] = {}
    for key in ("train_loss", "heldout_loss"):
        plain = {row["seed"]: float(str(row[key])) for row in rows if row["side"] == "plain"}
        fast = {row["seed"]: float(str(row[key])) for row in rows if row["side"] == "fast"}
        found[f"{key}_largest_difference"] = round(max(abs(fast[s] - plain[s]) for s in plain), 4)
        found[f"{key}_mean_difference"] = round(statistics.fmean(fast[s] - plain[s] for s in plain), 4)
        found[f"{key}_spread_between_seeds"] = round(max(plain.values()) - min(plain.values()), 4)
    return found


if __name__ == "__main__":
    main()
