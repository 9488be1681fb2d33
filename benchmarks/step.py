"""Tokens per second of our training step by preset, threads and length of examples; see `bithaul bench step`.

Each row is a process of its own: our step and fp32 fake quantisation in turn, then the products alone. The
last line is JSON; its top level repeats the row of requests as Truck Mate has them, on one thread. Example:

    python benchmarks/step.py --steps 20
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import chart

# preset, threads, examples, shortest, longest
ROWS = (
    ("small", 1, 32, 16, 46),
    ("small", 2, 32, 16, 46),
    ("small", 1, 128, 16, 16),
    ("small", 2, 128, 16, 16),
    ("small", 1, 64, 32, 32),
    ("small", 2, 64, 32, 32),
    ("small", 1, 32, 64, 64),
    ("small", 2, 32, 64, 64),
    ("small", 1, 16, 128, 128),
    ("small", 2, 16, 128, 128),
    ("medium", 1, 32, 32, 32),
    ("medium", 2, 32, 32, 32),
    ("medium", 1, 8, 128, 128),
    ("medium", 2, 8, 128, 128),
    ("medium", 2, 16, 128, 128),
    ("large", 2, 8, 256, 256),
)
KEYS = (
    "preset",
    "threads",
    "tokens_per_step",
    "tokens_per_second",
    "spread",
    "reference_tokens_per_second",
    "speedup",
    "roofline_fraction",
    "peak_memory_mb",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    rows = []
    reason = ""
    for preset, threads, examples, shortest, longest in ROWS:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "bithaul", "bench", "step", "--json"),
                *("--preset", preset, "--threads", str(threads), "--steps", str(args.steps)),
                *("--examples", str(examples), "--shortest", str(shortest), "--longest", str(longest)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        reason = found["reason"]
        rows.append({key: found[key] for key in KEYS} | {"targets": f"{shortest}-{longest}"})
        print(json.dumps(rows[-1]), flush=True)
    _draw(rows)
    first = rows[0]
    print(
        json.dumps(
            {
                "tokens_per_second": first["tokens_per_second"],
                "speedup": first["speedup"],
                "path": reason,
                "rows": rows,
            }
        )
    )


def _draw(rows: list[dict[str, Any]]) -> None:
    """docs/images/step_cost.svg: what a token costs by length of the examples, threads and preset."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        shortest, longest = map(int, row["targets"].split("-"))
        if shortest == longest:
            line = series.setdefault(f"{row['preset']}, {row['threads']} thread(s)", [])
            line.append((longest, 1e6 / row["tokens_per_second"]))
    chart.lines(
        "step_cost",
        series,
        title="cost of a trained token",
        x="tokens of an example",
        y="microseconds a token",
        marks=True,
        log=True,
    )


if __name__ == "__main__":
    main()
