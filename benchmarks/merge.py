"""Merging updates into the next weights: its arithmetic against a copy of the same bytes, and all of it.

In memory: pieces of encoded updates, theta and the next theta, against reading the payloads and copying theta
to where the next one goes, piece by piece in the same order; processor time of one thread. From files: a
coordinator's `flush` with its hashes and syncs, against a plain copy of the same files with a sync. They take
turns; medians and their ratio. The last line is JSON. Example:

    python benchmarks/merge.py --preset large --updates 1 --repeats 5
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from bithaul.coordinator.blobs.store import BlobRef
from bithaul.coordinator.commands import flush as flushing
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.settings import load_settings
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import frame_head
from bithaul.exchange.messages import ReportHeader
from bithaul.exchange.weights import weights_pieces
from bithaul.model.config import load_config
from bithaul.model.layout import Layout, layout_of
from bithaul.rounds.facts import Contribution, Past
from bithaul.rounds.merging import Room, step
from bithaul.rounds.rules import rule_named

VOCABULARY = 5_174


def in_turn(
    repeats: int, *runs: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each, after a first run of both."""
    for run in runs:
        run()
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for each, run in zip(found, runs, strict=True):
            started = clock()
            run()
            each.append(clock() - started)
    return [statistics.median(each) for each in found]


def arithmetic(
    layout: Layout, payloads: Sequence[bytes], theta: np.ndarray, chunk: int, repeats: int
) -> dict[str, float]:
    codec = codec_named("int8-block-v1")
    given = [Contribution(i, f"w{i}", 1000, 0, 0.0) for i in range(len(payloads))]
    plan = rule_named("sync").plan(given, past=Past(version=1, active=len(given)))
    out = np.zeros_like(theta)
    raw = [np.frombuffer(payload, np.uint8)[-layout.size :] for payload in payloads]

    def merge() -> None:
        pieces = [codec.pieces(io.BytesIO(p), layout, chunk_values=chunk) for p in payloads]
        room = Room(chunk)
        for start in range(0, layout.size, chunk):
            room.theta = out[start : start + chunk]
            step(plan, theta[start : start + chunk], None, (next(p) for p in pieces), room=room)

    def copy() -> None:
        for start in range(0, layout.size, chunk):
            for payload in raw:
                payload[start : start + chunk].max()
            out[start : start + chunk] = theta[start : start + chunk]

    merged, copied = in_turn(repeats, merge, copy, clock=time.process_time)
    return {"merge_seconds": merged, "copy_seconds": copied, "ratio": merged / copied}


def whole(
    c: Coordinator, layout: Layout, payloads: Sequence[bytes], theta: np.ndarray, repeats: int
) -> dict[str, float]:
    base = c.blobs.put(weights_pieces(1, theta), name=c.ids.nonce())
    updates = [put_update(c, layout, payload, i) for i, payload in enumerate(payloads)]
    given = [Contribution(i, f"w{i}", 1000, 0, 0.0) for i in range(len(payloads))]
    rule = rule_named("sync")
    plan = rule.plan(given, past=Past(version=1, active=len(given)))
    target = base.path.with_name("copy")

    def merge() -> None:
        flushing.flush(
            c,
            rule=rule,
            codec=codec_named("int8-block-v1"),
            layout=layout,
            version=2,
            base=base,
            momentum=None,
            updates=updates,
            plan=lambda _: plan,
        )

    def copy() -> None:
        for update in updates:
            with update.path.open("rb") as file:
                while file.read(1 << 20):
                    pass
        with base.path.open("rb") as source, target.open("wb") as out:
            while piece := source.read(1 << 20):
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        target.unlink()

    merged, copied = in_turn(repeats, merge, copy)
    return {"flush_seconds": merged, "file_copy_seconds": copied, "flush_ratio": merged / copied}


def put_update(c: Coordinator, layout: Layout, payload: bytes, number: int) -> BlobRef:
    header = ReportHeader(
        codec="int8-block-v1",
        run="merge",
        layout_hash=layout.hash,
        base_version=1,
        task=number + 1,
        fence=c.ids.nonce(),
        examples=1,
        tokens=1,
        steps=1,
        seconds=1.0,
        loss_first=1.0,
        loss_last=1.0,
        loss_mean=1.0,
        payload_size=len(payload),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
    )
    return c.blobs.put(iter([frame_head(header), payload]), name=c.ids.nonce())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="large")
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--chunk-values", type=int, help="of a slice (as a coordinator does)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    layout = layout_of(load_config(args.preset, vocab_size=VOCABULARY))
    random = np.random.default_rng(0)
    theta = random.standard_normal(layout.size, np.float32)
    codec = codec_named("int8-block-v1")
    payloads = [
        bytes(codec.encode(1e-3 * random.standard_normal(layout.size, np.float32), layout))
        for _ in range(args.updates)
    ]
    usual = flushing.OF_ONE_UPDATE if args.updates == 1 else flushing.CHUNK_VALUES
    found: dict[str, float] = arithmetic(layout, payloads, theta, args.chunk_values or usual, args.repeats)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_coordinator(load_settings(Path(folder)))) as coordinator,
    ):
        found |= whole(coordinator, layout, payloads, theta, args.repeats)
    rounded = {key: round(value, 4) for key, value in found.items()}
    about = {"preset": args.preset, "parameters": layout.size, "updates": args.updates}
    print(json.dumps(about | rounded))


if __name__ == "__main__":
    main()
