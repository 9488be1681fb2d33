"""What a claim, a heartbeat, a report and a merge cost a coordinator, by how much history its database holds.

One worker in turn with the coordinator, in one process: no HTTP, a real SQLite file, a tiny model, every gate
that looks back. The history is made up: tasks that were leased, reported and merged. A thousand workers with
tasks of ten minutes make 144,000 leases a day. Medians; the last line is JSON. Example:

    python benchmarks/history.py --leases 0 10000 100000 --rounds 40
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, insert, select

from bithaul.coordinator.commands.claim_task import claim_task
from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.merge_round import merge_round
from bithaul.coordinator.commands.register_worker import register_worker
from bithaul.coordinator.commands.submit_gradient import submit_gradient
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.database import runs
from bithaul.coordinator.database.tables import leases, reports, tasks
from bithaul.coordinator.settings import load_settings
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import write_frame
from bithaul.exchange.messages import (
    Capabilities,
    HeartbeatRequest,
    RegisterRequest,
    TaskMessage,
)
from bithaul.model.layout import layout_of
from bithaul.simulation.crowd import report_header
from bithaul.simulation.crowdbench import make_run
from bithaul.simulation.toy import MODEL

WORKER = "w"
PORTION = 5_000


def prepare(folder: Path) -> Coordinator:
    c = open_coordinator(load_settings(folder))
    make_run(c, MODEL, task_seconds=600.0, gates=["norm", "copy"])
    message = RegisterRequest(
        codecs=["int8-block-v1"],
        weight_formats=["weights-v1"],
        layout_hash=layout_of(MODEL).hash,
        capabilities=Capabilities(
            device="bench", threads=1, memory_bytes=1, tokens_per_second=50.0, software="bench"
        ),
    )
    register_worker(c, WORKER, message)
    return c


def write_history(connection: Connection, run: runs.RunRow, count: int) -> None:
    """Tasks that were leased, reported and merged into version 1, one after the other."""
    first = (connection.execute(select(tasks.c.id).order_by(tasks.c.id.desc())).scalar() or 0) + 1
    for start in range(first, first + count, PORTION):
        ids = range(start, min(start + PORTION, first + count))
        own = {"run_id": run.id}
        common = {**own, "task_id": 0, "worker": WORKER, "base_version": 1, "reason": "", "tokens": 100}
        connection.execute(
            insert(tasks),
            [
                {
                    **own,
                    "id": i,
                    "state": "merged",
                    "positions": [[i, 1]],
                    "examples": 1,
                    "attempts": 0,
                    "failed_by": [],
                    "reason": "",
                    "created_at": float(i),
                    "changed_at": float(i),
                }
                for i in ids
            ],
        )
        connection.execute(
            insert(leases),
            [
                {
                    **common,
                    "id": i,
                    "task_id": i,
                    "fence": f"{i:032x}",
                    "state": "reported",
                    **dict.fromkeys(("granted_at", "deadline", "last_deadline", "ended_at"), float(i)),
                    "expected_tokens": 100.0,
                    "aimed_at": float(i),
                    "soft_stop_seconds": 1.0,
                    "progress_start": 0.0,
                    "progress_end": 0.0,
                    "seed": i,
                    "probe": False,
                }
                for i in ids
            ],
        )
        connection.execute(
            insert(reports),
            [
                {
                    **common,
                    "task_id": i,
                    "lease_id": i,
                    "fence": f"{i:032x}",
                    "verdict": "accepted",
                    "code": "",
                    "received_at": float(i),
                    "staleness": 0,
                    "examples": 1,
                    "steps": 1,
                    "seconds": 1.0,
                    **dict.fromkeys(("loss_first", "loss_last", "loss_mean"), 2.0),
                    "norm": 1e-3,
                    "payload_sha256": hashlib.sha256(b"%d" % i).hexdigest(),
                    "merged_in": 1,
                }
                for i in ids
            ],
        )


def update(run: runs.RunRow, task: TaskMessage, seed: int) -> bytes:
    values = np.random.default_rng(seed).standard_normal(run.layout.size) * 1e-3
    payload = bytes(codec_named(run.codec).encode(values, run.layout))
    stream = io.BytesIO()
    about = {"run": run.name, "codec": run.codec, "layout_hash": run.layout_hash}
    sha256 = hashlib.sha256(payload).hexdigest()
    header = report_header(about, task, payload_size=len(payload), payload_sha256=sha256)
    write_frame(stream, header, payload)
    return stream.getvalue()


def measure(count: int, rounds: int) -> dict[str, object]:
    taken: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = run()
        taken.setdefault(name, []).append(time.perf_counter() - began)
        return result

    with tempfile.TemporaryDirectory() as name, closing(prepare(Path(name))) as c:
        with c.database.write() as connection:
            run = runs.get_run(connection)
            write_history(connection, run, count)
        for i in range(rounds):
            task = timed("claim", lambda: claim_task(c, WORKER)).task
            assert task is not None
            lease = {"task": task.task, "fence": task.fence}
            beat = HeartbeatRequest(**lease, tokens=10, tokens_per_second=50.0)
            timed("heartbeat", lambda beat=beat: heartbeat(c, WORKER, beat))
            timed("look", lambda: merge_round(c))
            with c.blobs.receive(f"u{i}") as incoming:
                incoming.write(update(run, task, i))
                upload = incoming.finish()
            timed(
                "submit",
                lambda lease=lease, upload=upload: submit_gradient(c, WORKER, **lease, upload=upload),
            )
            made = timed("merge", lambda: merge_round(c))
            assert made is not None
    return {
        "leases": count,
        **{f"{name}_ms": round(1000 * statistics.median(times[1:]), 2) for name, times in taken.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--leases", type=int, nargs="+", default=[0, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    rows = []
    for count in args.leases:
        rows.append(measure(count, args.rounds))
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"rounds": args.rounds, "rows": rows}))


if __name__ == "__main__":
    main()
