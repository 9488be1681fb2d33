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

# preset, threads, examples, shortest, longest
ROWS = (
    ("small", 1, 32, 16, 46),
    ("small", 2, 32, 16, 46),
    ("small", 1, 16, 128, 128),
    ("small", 2, 16, 128, 128),
    ("medium", 1, 8, 128, 128),
    ("medium", 2, 8, 128, 128),
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


if __name__ == "__main__":
    main()
