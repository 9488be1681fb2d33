"""What general compression takes off the bytes that travel: updates in each codec, weights and their change.

A preset is trained for a while and then for one task; its update is encoded as a worker would. For each kind
of bytes: the order-0 entropy (no entropy coder of single bytes can do better), DEFLATE, and zstd where the
package `zstandard` is at hand. `share` is what is left of the bytes; `pays_below` is the line in Mbit/s
below which the seconds saved are more than those of packing. The last line is JSON. Example:

    python benchmarks/studies/compressibility.py --corpus corpus --steps 200 --task 64
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bithaul.exchange.codecs import codec_named
from bithaul.exchange.pseudo_gradient import encode_with_feedback, pseudo_gradient
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of
from bithaul.simulation.real import Real

CODECS = ("int8-block-v1", "int4-block-v1", "topk-2bit-v1", "bf16-v1", "fp32-v1")


def packers() -> dict[str, Callable[[bytes], bytes]]:
    found: dict[str, Callable[[bytes], bytes]] = {"deflate 6": lambda data: zlib.compress(data, 6)}
    try:
        import zstandard
    except ImportError:
        return found
    for level in (3, 19):
        found[f"zstd {level}"] = zstandard.ZstdCompressor(level=level).compress
    return found


def entropy(data: bytes) -> float:
    """Bits a byte, of single bytes."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    shares = counts[counts > 0] / len(data)
    return float(-(shares * np.log2(shares)).sum())


def bf16_bytes(vector: np.ndarray) -> bytes:
    """Rounded half up in size, which is near enough to the nearest for counting bytes."""
    bits = np.ascontiguousarray(vector, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2").tobytes()


def measure(name: str, data: bytes) -> dict[str, object]:
    row: dict[str, object] = {"bytes_of": name, "size": len(data), "entropy_share": entropy(data) / 8}
    for packer, pack in packers().items():
        began = time.perf_counter()
        packed = len(pack(data))
        seconds = time.perf_counter() - began
        saved = len(data) - packed
        row[packer] = {
            "share": packed / len(data),
            "megabytes_per_second": len(data) / 1e6 / seconds,
            "pays_below": max(0.0, saved * 8e-6 / seconds),
        }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=200, help="before the task")
    parser.add_argument("--task", type=int, default=64, help="inner steps of the task")
    args = parser.parse_args()
    real = Real(args.corpus, preset=args.preset, workers=1)
    layout, trainer, batch = layout_of(real.model), real.alone(), real.recipe.batch_examples
    examples = real._read([s.id for s in real._manifest.shards])
    trainer.load(initial_vector(real.model, seed=0))
    until = args.steps * batch
    trainer.train(examples[:until], progress_start=0.05, progress_end=0.1, seed=0)
    start = trainer.vector()
    trainer.train(examples[until : until + args.task * batch], progress_start=0.1, progress_end=0.12, seed=1)
    end = trainer.vector()
    rows = []
    for name in CODECS:
        codec = codec_named(name)
        u = pseudo_gradient(start, end, exact=codec.lossless)
        rows.append(measure(f"update, {name}", bytes(encode_with_feedback(codec, u, None, layout)[0])))
    rows.append(measure("weights, fp32", end.astype("<f4").tobytes()))
    rows.append(measure("weights, bf16", bf16_bytes(end)))
    print(json.dumps({"preset": args.preset, "steps": args.steps, "task": args.task, "rows": rows}))


if __name__ == "__main__":
    main()
