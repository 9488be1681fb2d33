"""A run that looks like hours of work by five machines, written as rows: for tests and screenshots.

The numbers are made up (by a fixed seed) and only have the shape of a real run.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass

import numpy as np
from sqlalchemy import insert, update

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.services import ServiceResult, store_result
from bithaul.coordinator.database.tables import (
    leases,
    logs,
    reports,
    runs,
    shards,
    tasks,
    telemetry,
    versions,
    workers,
)
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.people import create_person, find_by_name
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.tables import people
from bithaul.exchange.weights import weights_pieces
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of

MODEL = ModelConfig(
    vocab_size=5174, hidden_size=256, intermediate_size=1024, num_layers=5, num_heads=8, context_length=128
)
MACHINES = {  # name: (device, threads, GiB, tokens per second)
    "attic-nuc": ("Intel N100", 4, 16, 610.0),
    "desk-ryzen": ("AMD Ryzen 7 5800X", 16, 32, 4900.0),
    "garage-dell": ("Intel Core i5-8500", 6, 16, 1650.0),
    "kitchen-laptop": ("Intel Core i7-1165G7", 8, 16, 1210.0),
    "lab-xeon": ("Intel Xeon Silver 4210", 20, 64, 3800.0),
}
STEP = 75.0  # seconds between versions
SPIKE = 0.618  # where in the run one update is an outlier


@dataclass(frozen=True)
class Entered:
    """A session that the admin site has accepted: its cookie and the token of its forms."""

    cookie: str
    csrf: str


STEERED = (  # share of the run's time, who, what
    (0.31, "system", "coordinator.start"),
    (0.62, "ada", "run.pause"),
    (0.63, "ada", "run.resume"),
)


def enter(c: Coordinator, name: str = "ada") -> Entered:
    """Sign somebody in without a password, by the rows that signing in would leave."""
    sessions = Sessions(c)
    create_person(c, name)
    with c.database.write() as connection:
        connection.execute(update(people).where(people.c.name == name).values(must_change=False))
        found = find_by_name(connection, name)
        assert found is not None
        sessions.start(connection, found[0], replaces=None, address="127.0.0.1", agent="test")
    [session] = sessions.live(found[0].id)
    with c.database.write() as connection:
        cookie = sessions.renew(connection, session.sid, admin=True)
    return Entered(cookie, sessions.csrf(cookie))


def pretend_run(c: Coordinator, *, count: int = 400, seed: int = 7, weights: bool = False) -> None:
    """`count` versions up to now, with leases open on four of five machines, one of them stalled.

    With `weights` the two newest versions have some, of 28 MB each; all others are retired.
    """
    rng = random.Random(seed)
    now = c.clock.now()
    start = now - count * STEP
    rows_v, rows_t, rows_l, rows_r = [], [], [], []
    total = task = 0
    names = list(MACHINES)
    for version in range(1, count + 1):
        made = start + version * STEP
        base = (
            1.62 + 6.6 * math.exp(-version / (0.05 * count + 4)) + 1.1 * math.exp(-version / (0.35 * count))
        )
        tokens = staleness = 0
        losses = []
        left = count - version
        here = [n for n in names if left >= {"kitchen-laptop": 8, "lab-xeon": 39}.get(n, 0)]
        for name in [] if version == 1 else rng.sample(here, rng.randint(2, min(4, len(here)))):
            task += 1
            amount = int(MACHINES[name][3] * STEP * rng.uniform(0.7, 1.0))
            late = rng.choices([0, 1, 2, 3], [60, 28, 9, 3])[0]
            loss = base + rng.gauss(0, 0.045)
            if version == int(SPIKE * count) and not losses:
                loss += 1.4
            bad = rng.random() < 0.006
            rows_t.append(_task(task, made, "failed" if bad else "merged"))
            rows_l.append(_lease(task, name, made, version - 1, amount, "reported"))
            rows_r.append(_report(task, name, made, version, amount, late, loss, bad=bad))
            if not bad:
                tokens += amount
                staleness += late * amount
                losses.append(loss)
        total += tokens
        heldout = base + 0.08 + 0.25 * (version / count) ** 2 * 0.5 + rng.gauss(0, 0.012)
        rows_v.append(
            {
                "run_id": 1,
                "version": version,
                "sha256": f"{version:064x}",
                "size": 27_541_632,
                "theta_sha256": None,
                "momentum_sha256": None,
                "retired_at": made + 60 if version < count - 1 else None,
                "pinned": False,
                "created_at": made,
                "reports": len(losses),
                "contributors": len(losses),
                "tokens": tokens,
                "tokens_total": total,
                "staleness": staleness / tokens if tokens else 0.0,
                "step_norm": 0.0 if version == 1 else 1.9 * math.exp(-version / count) + rng.uniform(0, 0.2),
                "train_loss": sum(losses) / len(losses) if losses else None,
                "heldout_loss": heldout if version % 3 == 0 or version < 4 else None,
                "heldout_tokens": 9000 if version % 3 == 0 else None,
                "probe_leased_at": None,
                "merge_seconds": rng.uniform(0.05, 0.12),
            }
        )
    if weights:
        _weights(c, rows_v[-2:])
    with c.database.write() as connection:
        connection.execute(insert(runs), [_run(total, start, now, count)])
        connection.execute(insert(shards), [_shard()])
        connection.execute(insert(workers), [_worker(name, start, now) for name in names])
        for table, rows in ((versions, rows_v), (tasks, rows_t), (leases, rows_l), (reports, rows_r)):
            connection.execute(insert(table), rows)
        points = []
        for number, name in enumerate(names[:4]):
            task += 1
            share = (0.63, 0.31, 0.86, 0.48)[number]
            expected = MACHINES[name][3] * 600
            stalled = name == "kitchen-laptop"
            connection.execute(insert(tasks), [_task(task, now, "leased")])
            row = _lease(task, name, now, count, int(expected * share), "open")
            row |= {"granted_at": now - 600 * share - (240 if stalled else 0), "expected_tokens": expected}
            connection.execute(insert(leases), [row])
            speed = MACHINES[name][3]
            for i in range(1440):  # a day, each minute
                earlier = now - 86_400 + i * 60
                if start < earlier < now - 1800:
                    dip = 0.55 if 300 < i % 480 < 360 else 1.0
                    points.append(_point(earlier, name, 1, 1, speed * dip * rng.uniform(0.9, 1.05)))
            for i in range(180):
                at = now - 1800 + i * 10
                if stalled and at > now - 240:
                    break
                done = (
                    int(expected * share)
                    if at > now - 12 or (stalled and i == 155)
                    else int(i * 10 * speed) % int(expected)
                )
                points.append(_point(at, name, task, done, speed * rng.uniform(0.86, 1.08)))
        for _ in range(14):
            task += 1
            connection.execute(insert(tasks), [_task(task, now, "pending")])
        connection.execute(insert(telemetry), points)
        connection.execute(
            update(workers)
            .where(workers.c.id == "lab-xeon")
            .values(gone=True, last_seen=now - 2900, activity="idle")
        )
        connection.execute(insert(logs), list(_logs(rng, start, now)))
        for share, actor, action in STEERED:
            record(
                connection, start + share * (now - start), actor=actor, action=action, subject="truck-mate"
            )
    _services(c, now)


def _weights(c: Coordinator, rows: list[dict[str, object]]) -> None:
    """Latent weights of two neighbouring versions, whose share of zeros grows with depth."""
    generator = np.random.default_rng(3)
    layout = layout_of(MODEL)
    vector = np.zeros(layout.size, np.float32)
    for spec, view in layout.views(vector):
        depth = int(spec.name.split(".")[2]) if spec.name.startswith("model.layers.") else 0
        view[:] = generator.standard_t(4 + 5 * (4 - depth), spec.shape).astype(np.float32) * 0.02
    for row in rows:
        blob = c.blobs.put(weights_pieces(row["version"], vector), name=f"pretend-{row['version']}")
        row |= {"sha256": blob.sha256, "size": blob.size, "theta_sha256": blob.sha256}
        vector = vector + generator.normal(0, 0.0004, vector.shape).astype(np.float32)


def _run(total: int, start: float, now: float, count: int) -> dict[str, object]:
    return {
        "id": 1,
        "name": "truck-mate",
        "state": "running",
        "model": MODEL.model_dump(mode="json"),
        "recipe": {"batch_examples": 64, "peak_rate": 0.003},
        "layout_hash": layout_of(MODEL).hash,
        "tokenizer_sha256": "0" * 64,
        "label_token": 5,
        "codec": "int8-block-v1",
        "merge_rule": "buffered_nesterov",
        "merge_options": {"eta": 0.7, "mu": 0.9},
        "budget_tokens": float(int(total * 1.45)),
        "budget_seconds": None,
        "task_seconds": 600.0,
        "probe_every": 3,
        "max_update_norm": None,
        "seed": 1,
        "tokens_per_example": 24.0,
        "position_block": 64,
        "position_cursor": total // 24,
        "active_seconds": count * STEP,
        "active_anchor": now,
        "created_at": start,
    }


def _shard() -> dict[str, object]:
    return {
        "id": "train-00000",
        "run_id": 1,
        "kind": "train",
        "ordinal": 0,
        "examples": 50_000,
        "tokens": 1_200_000,
        "size": 4_800_000,
        "sha256": "1" * 64,
        "index_size": 200_004,
        "index_sha256": "2" * 64,
    }


def _worker(name: str, start: float, now: float) -> dict[str, object]:
    device, threads, memory, speed = MACHINES[name]
    return {
        "id": name,
        "ready": True,
        "drained": False,
        "gone": False,
        "capabilities": {
            "device": device,
            "threads": threads,
            "memory_bytes": memory * 2**30,
            "tokens_per_second": speed * 1.06,
            "path": "int8 products, bf16 attention",
            "software": "0.1.0",
        },
        "calibrated_speed": speed * 1.06,
        "speed": speed,
        "activity": "uploading" if name == "garage-dell" else "training",
        "failures": 0,
        "rest_until": 0.0,
        "registered_at": start,
        "last_seen": now - 3,
    }


def _task(number: int, at: float, state: str) -> dict[str, object]:
    return {
        "id": number,
        "run_id": 1,
        "state": state,
        "positions": [[number * 1024, 1024]],
        "examples": 1024,
        "attempts": 5 if state == "failed" else 0,
        "failed_by": [],
        "reason": "rejected" if state == "failed" else "",
        "created_at": at - STEP,
        "changed_at": at,
    }


def _lease(task: int, name: str, at: float, base: int, tokens: int, state: str) -> dict[str, object]:
    return {
        "run_id": 1,
        "task_id": task,
        "worker": name,
        "fence": f"{task:032x}",
        "state": state,
        "base_version": base,
        "granted_at": at - STEP,
        "deadline": at + 900,
        "last_deadline": at + 3600,
        "ended_at": at if state == "reported" else None,
        "reason": "",
        "tokens": tokens,
        "expected_tokens": float(tokens),
        "aimed_at": at,
        "soft_stop_seconds": 600.0,
        "progress_start": 0.0,
        "progress_end": 0.0,
        "seed": task,
        "probe": False,
    }


def _report(
    task: int, name: str, at: float, version: int, tokens: int, late: int, loss: float, *, bad: bool
) -> dict[str, object]:
    return {
        "run_id": 1,
        "task_id": task,
        "lease_id": task,
        "worker": name,
        "fence": f"{task:032x}",
        "verdict": "rejected" if bad else "accepted",
        "code": "update_too_long" if bad else "",
        "reason": "The update is 9.2 times as long as the median of the last 64." if bad else "",
        "received_at": at - 1,
        "base_version": version - 1 - late,
        "staleness": late,
        "examples": 1024,
        "tokens": tokens,
        "steps": 16,
        "seconds": STEP * 0.9,
        "loss_first": loss + 0.1,
        "loss_last": loss - 0.1,
        "loss_mean": loss,
        "norm": 1.0,
        "blob_sha256": None,
        "merged_in": None if bad else version,
    }


def _point(at: float, name: str, task: int, tokens: int, speed: float) -> dict[str, object]:
    return {
        "time": at,
        "worker": name,
        "task_id": task,
        "tokens": tokens,
        "tokens_per_second": speed,
        "loss": 1.8,
    }


def _logs(rng: random.Random, start: float, now: float):
    at = start
    while at < now:
        at += rng.expovariate(1 / 30)
        name = rng.choice(list(MACHINES))
        level, event, fields = rng.choices(
            [
                ("info", "task_started", {"task": rng.randint(1, 900), "examples": 1024}),
                ("info", "update_sent", {"task": rng.randint(1, 900), "bytes": 7_012_344, "seconds": 3.1}),
                ("debug", "heartbeat", {"tokens_per_second": round(MACHINES[name][3])}),
                ("warning", "connection_lost", {"error": "ConnectError", "retry_in": 4.0}),
                ("error", "task_failed", {"task": rng.randint(1, 900), "code": "out_of_memory"}),
            ],
            [40, 40, 14, 5, 1],
        )[0]
        yield {
            "received_at": at,
            "time": at,
            "worker": name,
            "level": level,
            "event": event,
            "fields": json.dumps(fields),
        }


def _services(c: Coordinator, now: float) -> None:
    told = {
        "merger": "version 400 from 3 updates",
        "sweeper": "0 leases expired, 0 workers gone",
        "prune": "0 points, 0 entries deleted",
        "retention": "396 versions retired",
        "disk": "48,212 MiB free",
    }
    with c.database.write() as connection:
        for name, message in told.items():
            store_result(connection, ServiceResult(name, True, message, now - 4, 0.01))
