"""A run that looks like a day's work of twelve machines, written as rows: for tests, pictures, benchmarks.

The numbers are made up (by a fixed seed) and only have the shape of a real run: 400 versions come with about
100,000 metric points. `large.py` adds a thousand machines and a million log entries to it.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import insert, update

from bithaul import __version__
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
from bithaul.exchange.weights import weights_pieces, weights_size
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of

MODEL = ModelConfig(
    vocab_size=5174, hidden_size=256, intermediate_size=1024, num_layers=5, num_heads=8, context_length=128
)


@dataclass(frozen=True)
class Machine:
    """What it is, and what it does at the end of the run; `left` that many versions before the end."""

    device: str
    threads: int
    memory: int  # GiB
    speed: float  # tokens per second
    activity: str = "training"
    share: float = 0.0  # of the task that it holds; 0: it holds none
    left: int = 0
    standing: str = "steady"
    trust_reason: str = ""
    changed: Mapping[str, object] = field(default_factory=dict)  # columns of its row


MACHINES = {
    "attic-nuc": Machine("Intel N100", 4, 16, 610.0, share=0.63),
    "barn-optiplex": Machine("Intel Core i7-9700", 8, 16, 2240.0, share=0.94, changed={"drained": True}),
    "desk-ryzen": Machine("AMD Ryzen 7 5800X", 16, 32, 4900.0, share=0.31),
    "garage-dell": Machine("Intel Core i5-8500", 6, 16, 1650.0, activity="uploading", share=0.86),
    "hall-thinkpad": Machine("Intel Core i5-10210U", 8, 16, 930.0, share=0.12),
    "kitchen-laptop": Machine("Intel Core i7-1165G7", 8, 16, 1210.0, share=0.48, left=3),
    "lab-xeon": Machine(
        "Intel Xeon Silver 4210", 20, 64, 3800.0, activity="idle", left=14, changed={"gone": True}
    ),
    "loft-mini": Machine("Intel Core i5-8259U", 4, 16, 1080.0, share=0.77),
    "mom-desktop": Machine(
        "AMD Ryzen 5 3600",
        12,
        16,
        3150.0,
        share=0.55,
        standing="probation",
        trust_reason="an update was 9.2 times as long as usual",
    ),
    "office-i9": Machine("Intel Core i9-12900K", 24, 64, 6900.0, activity="downloading", share=0.002),
    "shed-celeron": Machine("Intel Celeron J4125", 4, 8, 145.0, share=0.41),
    "study-m720": Machine(
        "Intel Core i5-9400T",
        6,
        8,
        1490.0,
        activity="idle",
        left=5,
        changed={"failures": 3, "rest_until": 410.0},
    ),
}
STEP = 208.0  # seconds between versions
TASK_SECONDS = 600.0
HEARTBEAT = 9.6  # seconds between metric points
KEPT_SECONDS = 400 * STEP  # of metric points and log entries
STALLED_SECONDS = 240.0  # how long kitchen-laptop has not got further
TRIED_BEFORE = "mom-desktop"  # it holds a task that two others could not finish
SPIKE = 0.618  # where in the run one update is an outlier


@dataclass(frozen=True)
class Entered:
    """A session that the admin site has accepted: its cookie and the token of its forms."""

    cookie: str
    csrf: str


REFUSALS = (
    ("update_too_long", "The update is 9.2 times as long as the median of the last 64."),
    ("loss_too_high", "Its loss of 7.31 is far above what the others report, 1.94."),
    ("not_finite", "The update holds a number that is not finite."),
)
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
    """`count` versions up to now, with leases open on ten of twelve machines, one of them stalled.

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
        here = [n for n in names if left >= MACHINES[n].left]
        for name in [] if version == 1 else rng.sample(here, rng.choice((4, 4, 4, 5, 3))):
            task += 1
            amount = int(MACHINES[name].speed * TASK_SECONDS * rng.uniform(0.8, 1.0))
            late = rng.choices([0, 1, 2, 3], [60, 28, 9, 3])[0]
            loss = base + rng.gauss(0, 0.045)
            if version == int(SPIKE * count) and not losses:
                loss += 1.4
            bad = rng.random() < 0.006
            rows_t.append(_task(task, made, "failed" if bad else "merged", amount))
            rows_l.append(_lease(task, name, made, version - 1, amount, "reported"))
            rows_r.append(
                _report(
                    task,
                    name,
                    made,
                    version,
                    amount,
                    late,
                    loss,
                    refused=REFUSALS[task % len(REFUSALS)] if bad else None,
                )
            )
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
                "sha256": hashlib.sha256(b"%d" % version).hexdigest(),
                "size": weights_size(layout_of(MODEL).size),
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
        points: list[dict[str, object]] = []
        for name, machine in MACHINES.items():
            current = None
            quiet = STALLED_SECONDS if name == "kitchen-laptop" else 0.0
            if machine.share:
                task += 1
                current = task
                expected = machine.speed * TASK_SECONDS
                row = _task(task, now, "leased", int(expected))
                if name == TRIED_BEFORE:
                    row |= {"created_at": now - 5200, "attempts": 2, "failed_by": ["lab-xeon", "study-m720"]}
                connection.execute(insert(tasks), [row])
                if name == TRIED_BEFORE:
                    connection.execute(insert(leases), _earlier(task, now, count, expected))
                row = _lease(task, name, now, count, int(expected * machine.share), "open")
                granted = now - TASK_SECONDS * machine.share - quiet
                row |= {"granted_at": granted, "expected_tokens": expected}
                row["moved_at"] = now - quiet - HEARTBEAT / 2
                connection.execute(insert(leases), [row])
            end = now if current is not None else now - machine.left * STEP
            points += _points(rng, name, max(start, now - KEPT_SECONDS), end, current, quiet)
        for _ in range(14):
            task += 1
            connection.execute(insert(tasks), [_task(task, now, "pending", 726_528)])
        connection.execute(insert(telemetry), points)
        connection.execute(insert(logs), list(_logs(rng, max(start, now - KEPT_SECONDS), now)))
        for share, actor, action in STEERED:
            record(
                connection, start + share * (now - start), actor=actor, action=action, subject="truck-mate"
            )
    _services(c, now, count)


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
        "task_seconds": TASK_SECONDS,
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
    machine = MACHINES[name]
    row = {
        "id": name,
        "ready": True,
        "drained": False,
        "gone": False,
        "capabilities": {
            "device": machine.device,
            "threads": machine.threads,
            "memory_bytes": machine.memory * 2**30,
            "tokens_per_second": machine.speed * 1.06,
            "path": "int8 products, bf16 attention",
            "software": __version__,
        },
        "calibrated_speed": machine.speed * 1.06,
        "speed": machine.speed,
        "activity": machine.activity,
        "failures": 0,
        "rest_until": 0.0,
        "standing": machine.standing,
        "trust": 1.0 if machine.standing == "steady" else 0.75,
        "trust_to_go": 0 if machine.standing == "steady" else 2,
        "trust_reason": machine.trust_reason,
        "registered_at": start,
        "last_seen": now - (2900 if machine.changed.get("gone") else 3),
        **machine.changed,
    }
    if row["rest_until"]:
        row["rest_until"] = now + float(machine.changed["rest_until"])  # type: ignore[arg-type]
    return row


def _task(number: int, at: float, state: str, tokens: int) -> dict[str, object]:
    return {
        "id": number,
        "run_id": 1,
        "state": state,
        "positions": [[number * 262_144, tokens // 24]],
        "examples": tokens // 24,
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
        "granted_at": at - TASK_SECONDS,
        "deadline": at + 900,
        "last_deadline": at + 3600,
        "ended_at": at if state == "reported" else None,
        "reason": "",
        "tokens": tokens,
        "expected_tokens": float(tokens),
        "aimed_at": at,
        "soft_stop_seconds": TASK_SECONDS,
        "progress_start": 0.0,
        "progress_end": 0.0,
        "seed": task,
        "probe": False,
    }


def _earlier(task: int, now: float, count: int, expected: float) -> list[dict[str, object]]:
    """Leases of a task whose workers did not get to its end: one went away, one has too little memory."""
    tries = (("lab-xeon", 5000.0, 2900.0, "expired", 0.42, "expired"),)
    tries += (("study-m720", 2100.0, 1980.0, "released", 0.07, "out_of_memory"),)
    return [
        _lease(task, name, now - begun, count - 14, int(share * expected), state)
        | {
            "fence": f"f{number}{task:030x}",
            "granted_at": now - begun,
            "ended_at": now - ended,
            "expected_tokens": expected,
            "reason": reason,
        }
        for number, (name, begun, ended, state, share, reason) in enumerate(tries, 1)
    ]


def _report(
    task: int,
    name: str,
    at: float,
    version: int,
    tokens: int,
    late: int,
    loss: float,
    *,
    refused: tuple[str, str] | None,
) -> dict[str, object]:
    return {
        "run_id": 1,
        "task_id": task,
        "lease_id": task,
        "worker": name,
        "fence": f"{task:032x}",
        "verdict": "rejected" if refused else "accepted",
        "code": refused[0] if refused else "",
        "reason": refused[1] if refused else "",
        "received_at": at - 1,
        "base_version": version - 1 - late,
        "staleness": late,
        "examples": tokens // 24,
        "tokens": tokens,
        "steps": max(1, tokens // 24 // 64),
        "seconds": TASK_SECONDS * 0.9,
        "loss_first": loss + 0.1,
        "loss_last": loss - 0.1,
        "loss_mean": loss,
        "norm": 1.0,
        "blob_sha256": None,
        "merged_in": None if refused else version,
    }


def _points(
    rng: random.Random, name: str, start: float, end: float, current: int | None, quiet: float
) -> Iterator[dict[str, object]]:
    """One at each heartbeat, with an afternoon in which the machine had other things to do.

    `current` began with the lease; the newest point says of it what the lease says.
    """
    machine = MACHINES[name]
    expected = machine.speed * TASK_SECONDS
    reached = int(expected * machine.share)
    begun = end - quiet - TASK_SECONDS * machine.share
    at = end - quiet - HEARTBEAT / 2
    yield _point(at, name, current, reached, machine.speed * rng.uniform(0.9, 1.05))
    phase = rng.uniform(0.0, 28_800.0)
    while (at := at - HEARTBEAT) > start:
        dip = 0.55 if 14_400 < (end - at + phase) % 28_800 < 21_600 else 1.0
        working = current if at > begun else None
        done = reached * (at - begun) / (end - quiet - begun) if working is not None else 0.5 * expected
        yield _point(at, name, working or 1, int(done), machine.speed * dip * rng.uniform(0.88, 1.06))


def _point(at: float, name: str, task: int | None, tokens: int, speed: float) -> dict[str, object]:
    return {
        "time": at,
        "worker": name,
        "task_id": task,
        "tokens": tokens,
        "tokens_per_second": speed,
        "loss": 1.8,
    }


def _logs(rng: random.Random, start: float, now: float) -> Iterator[dict[str, object]]:
    at = start
    while at < now:
        at += rng.expovariate(1 / 30)
        name = rng.choice(list(MACHINES))
        level, event, fields = rng.choices(
            [
                ("info", "task_started", {"task": rng.randint(1, 900), "examples": 1024}),
                ("info", "update_sent", {"task": rng.randint(1, 900), "bytes": 7_012_344, "seconds": 3.1}),
                ("debug", "heartbeat", {"tokens_per_second": round(MACHINES[name].speed)}),
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


def _services(c: Coordinator, now: float, count: int) -> None:
    told = {
        "merger": f"version {count} from 3 updates",
        "sweeper": "0 leases expired, 0 workers gone",
        "prune": "0 points, 0 entries deleted",
        "retention": f"{max(0, count - 4)} versions retired",
        "disk": "48,212 MiB free",
    }
    with c.database.write() as connection:
        for name, message in told.items():
            store_result(connection, ServiceResult(name, True, message, now - 4, 0.01))
