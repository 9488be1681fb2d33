"""Tokens per second of our training step on a GPU, by preset, path and size of the batch.

The reference is fp32 fake quantisation in eager torch on the same GPU, without TF32. Each row is a process of
its own. What came out on a machine with a GPU is stored from its file. Example:

    python benchmarks/gpu.py > gpu.txt && python benchmarks/run_all.py --record gpu=gpu.txt
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from own_data import bithaul
from run_all import machine
from step import KEYS

# preset, path, examples; every example fills the context
ROWS = (
    ("small", "cuda", 16),
    ("small", "cuda", 256),
    ("medium", "cuda", 128),
    ("large", "cuda", 16),
    ("large", "cuda", 64),
    ("large", "cuda-int8", 64),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no CUDA device here; run this on a machine with a GPU.", file=sys.stderr)
        return 1
    about = machine() | {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    rows = []
    for preset, path, examples in ROWS:
        found = bithaul(
            *("bench", "step", "--preset", preset, "--path", path, "--threads", "1"),
            *("--examples", str(examples), "--steps", str(args.steps)),
        )
        rows.append({key: found[key] for key in KEYS if key != "threads"} | {"path": path})
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"machine": about, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
