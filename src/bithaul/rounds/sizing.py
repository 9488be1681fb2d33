"""How much work a lease carries and how long it may take: in time first, then in examples.

Speeds are tokens per second of one worker. What a worker says about itself never shortens a lease, and it
neither takes the rest of a run nor keeps a lease for years: until its first accepted report its calibration
counts up to `FIRST_SPEED`, and after that its speed is at most `PROOF` times what the clock here saw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SMOOTHING = 0.4  # weight of the newest task in the moving average of speed
LATE_SHARE = 0.4  # with less of the round left than this, a task aims at the next tick
SOFT_STOP = 1.5  # soft stop at so many times the planned duration
LEASE_FACTOR = 3.0
RENEWAL_FACTOR = 1.5
LAST_FACTOR = 8.0  # of the first lease time: renewal ends
SHORTEST_LEASE = 30.0
DOWNLOAD_BYTES_PER_SECOND = 5e6
UPLOAD_BYTES_PER_SECOND = 1e6
USUAL_ROUND = 8.0  # seconds
LONGEST_RETRY = 60.0  # times the usual one
DEFAULT_SPEED = 500.0  # tokens per second, before anything is known
FIRST_SPEED = 20_000.0  # a fast CPU's with `small`; a GPU's first task is a short one
SLOWEST = 1.0
PROOF = 10.0  # a worker may spend nine tenths of a lease with transfers
LONGEST_LEASE = 6 * 3600.0  # without renewal


def next_speed(old: float, *, tokens: int, seconds: float, elapsed: float, calibrated: float) -> float:
    """Moving average over finished tasks, at most three times the calibration.

    `seconds` is what the worker says it trained, `elapsed` how old its lease was at the report.
    """
    if seconds <= 0 or tokens <= 0:
        return old
    measured = tokens / max(seconds, elapsed / PROOF)
    if calibrated > 0:
        measured = min(measured, 3 * calibrated)
    return measured if old <= 0 else old + SMOOTHING * (measured - old)


def speed_of(*, measured: float, calibrated: float) -> float:
    """The speed to plan with."""
    if measured > 0:
        return max(measured, SLOWEST)
    return min(max(calibrated, SLOWEST), FIRST_SPEED) if calibrated > 0 else DEFAULT_SPEED


@dataclass(frozen=True)
class Sizing:
    """Facts for one claim. `fleet_speed` is the sum over workers that may take work, this one included."""

    speed: float
    fleet_speed: float
    round_seconds: float  # planned length of the round
    seconds_left: float  # of it
    overhead_seconds: float  # this worker measures the base first
    remaining_tokens: float  # of the budget, not yet leased; infinity without one
    remaining_seconds: float  # of the budget; infinity without one
    tokens_per_example: float
    batch_examples: int


@dataclass(frozen=True)
class Size:
    examples: int
    tokens: float  # expected
    seconds: float  # expected
    soft_stop_seconds: float


def task_size(s: Sizing) -> Size:
    """Whole inner batches, at least one, for the rest of the round and within the remaining budget.

    Near the end of a token budget the rest is shared out by speed, so that all workers finish together.
    """
    late = s.seconds_left < LATE_SHARE * s.round_seconds
    planned = s.seconds_left + s.round_seconds if late else s.seconds_left
    seconds = min(max(planned - s.overhead_seconds, 0.5 * planned), max(s.remaining_seconds, 0.0))
    tokens = s.speed * seconds
    share = s.speed / max(s.fleet_speed, s.speed)
    tokens = min(tokens, max(s.remaining_tokens, 0.0) * share)
    batches = max(1, round(tokens / (s.tokens_per_example * s.batch_examples)))
    examples = batches * s.batch_examples
    expected = examples * s.tokens_per_example
    duration = expected / s.speed
    return Size(examples, expected, duration, SOFT_STOP * max(duration, seconds))


def lease_seconds(*, task_seconds: float, duration: float, weights_bytes: int, payload_bytes: int) -> float:
    """How long a lease runs without renewal: work three times over, and a slow home line's transfers."""
    work = LEASE_FACTOR * max(task_seconds, duration)
    transfer = transfer_seconds(weights_bytes=weights_bytes, payload_bytes=payload_bytes)
    return min(max(work, SHORTEST_LEASE) + transfer, LONGEST_LEASE)


def transfer_seconds(*, weights_bytes: int, payload_bytes: int) -> float:
    """Weights down and an update up, on a slow home line."""
    return weights_bytes / DOWNLOAD_BYTES_PER_SECOND + payload_bytes / UPLOAD_BYTES_PER_SECOND


def retry_seconds(usual: float, *, length: float, left: float = 0.0) -> float:
    """When a worker that gets nothing asks again; `usual` fits rounds of eight seconds.

    In longer ones half of the way to the tick (or a quarter of the way from it, once it has passed), at most
    about a tenth of the round: a large fleet that waits a quarter of an hour must not ask ten times a second.
    """
    scale = max(1.0, length / USUAL_ROUND)
    most = max(0.0, 0.1 * (length - USUAL_ROUND))
    way = 0.5 * left if left > 0 else -0.25 * left
    return max(usual * min(scale, LONGEST_RETRY), min(way, most))


def present_seconds(length: float) -> float:
    """A worker without a lease that was not heard for so long is not awaited: two retries and some."""
    return max(5.0, 0.25 * length)


def enough(*, covered_tokens: float, budget_tokens: float, batch_tokens: float) -> bool:
    """Whether a token budget is covered; half an inner batch is not worth another round."""
    return covered_tokens >= budget_tokens - min(0.5 * batch_tokens, 0.5 * budget_tokens)


def progress_share(
    *, tokens: float, budget_tokens: float | None, seconds: float, budget_seconds: float | None
) -> float:
    """Share of the budget used, 0..1: the larger of both shares when both are set."""
    shares = [0.0]
    if budget_tokens:
        shares.append(tokens / budget_tokens)
    if budget_seconds:
        shares.append(seconds / budget_seconds)
    return min(1.0, max(shares)) if math.isfinite(max(shares)) else 1.0
