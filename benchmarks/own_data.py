"""What `bithaul up` learns from somebody's labelled requests: mean and spread over seeds.

Not a benchmark by itself; `clinc150` and `snips` use it. Each seed is a run of its own, from the files to the
evaluation, with real workers over HTTP. One worker on all cores, then the first seed again through two, which
is what merging costs. The twin is the same run without quantisers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KEPT = ("accuracy", "slot_f1", "exact_match")


def parser(about: str | None, *, tokens: float) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument("--data", type=Path, required=True, help="the data set's folder")
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--tokens", type=float, default=tokens, help="trained by each seed")
    found.add_argument("--minutes", type=float, default=20.0, help="most training time of each seed")
    found.add_argument("--preset", default="small")
    found.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1, 2],
        help="of all seeds; any more numbers: of the first seed",
    )
    found.add_argument("--twin", action="store_true", help="train the full-precision twins instead")
    found.add_argument("--json", action="store_true", help="accepted and without effect: it is always JSON")
    return found


def measure(args: argparse.Namespace, train: Path, valid: Path, *, evaluate: tuple[str, ...]) -> None:
    """Train and evaluate every seed; prints a line for each and the summary on the last line."""
    rows = []
    jobs = [(args.workers[0], seed) for seed in args.seeds]
    jobs += [(workers, args.seeds[0]) for workers in args.workers[1:]]
    for workers, seed in jobs:
        with tempfile.TemporaryDirectory() as folder:
            up = bithaul(
                *("up", "--dir", folder, "--preset", args.preset, "--seed", str(seed)),
                *("--train", str(train), "--valid", str(valid), "--workers", str(workers)),
                *("--budget-tokens", str(int(args.tokens)), "--budget-minutes", str(args.minutes)),
                *(["--twin"] if args.twin else []),
            )
            found = bithaul("evaluate", "intents", "--dir", folder, "--data", str(valid), *evaluate)
        row: dict[str, object] = {"seed": seed, "workers": workers, **{key: found[key] for key in KEPT}}
        if found.get("out_of_scope"):
            row["out_of_scope_auroc"] = found["out_of_scope"]["auroc"]
        row["calibration_error"] = found["calibration"]["ece"]
        row |= {"tokens": up["tokens"], "minutes": round(up["seconds"] / 60, 2)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    summary = _summary([row for row in rows if row["workers"] == args.workers[0]])
    print(json.dumps({"preset": args.preset, "twin": args.twin, **summary, "rows": rows}))


def _summary(rows: list[dict[str, object]]) -> dict[str, float]:
    """Mean of each measure over the seeds, and the distance between the best and the worst."""
    found = {}
    for key in (*KEPT, "out_of_scope_auroc", "calibration_error", "minutes"):
        values = [float(str(row[key])) for row in rows if row.get(key) is not None]
        if values:
            found[f"{key}_mean"] = round(statistics.fmean(values), 4)
            found[f"{key}_spread"] = round(max(values) - min(values), 4)
    return found


def bithaul(*words: str) -> dict[str, Any]:
    """The JSON of a command's last line; its progress goes to the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "bithaul", *words, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
