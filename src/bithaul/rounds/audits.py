"""The audit: which tasks another worker repeats, who may repeat them, and how alike two runs of a task are.

Gate 8 of exchange.md §9, pure: draws, sizes and inner products come in, decisions go out. Two machines never
give the same bits, so two runs are compared within a tolerance, which was measured (docs/lab/0025). A task
that may be repeated is flagged when it is leased: its worker begins with fresh moments and keeps its residual
for later. More tasks are flagged than repeated, and a repetition looks like a flagged task to its worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bithaul.rounds.gates import audit_rate
from bithaul.rounds.sizing import SOFT_STOP, Size

FLAGGED = 2.0  # times as many tasks are flagged as are repeated
MOST_STEPS = 8  # inner steps of a flagged task: in more, honest machines drift too far apart (lab note 25)
TRIES = 3  # leases of one repetition, before it is given up
BUSY = 4  # at most every so-manieth worker repeats at a time, though always one
LONGEST = 2.0  # rounds that a repetition may take
WAITING = 8  # updates that are kept to be repeated, with their bases; the oldest go first


@dataclass(frozen=True)
class Draw:
    flagged: bool
    repeated: bool


def draw(chance: float, *, streak: int) -> Draw:
    """What becomes of a worker's next task; `chance` is uniform in [0, 1).

    `streak` counts its accepted reports since the last strike or repetition that came out differently.
    """
    rate = audit_rate(streak)
    return Draw(flagged=chance < FLAGGED * rate, repeated=chance < rate)


def repeatable(size: Size, *, tokens: float, batch_tokens: float, batch_examples: int) -> Size:
    """`size` cut to what another worker can repeat alike: whole inner batches of at most `tokens`, one to
    `MOST_STEPS` of them.
    """
    batches = max(1, min(MOST_STEPS, math.floor(tokens / batch_tokens)))
    if size.tokens <= batches * batch_tokens:
        return size
    share = batches * batch_tokens / size.tokens
    seconds = share * size.seconds
    return replace(
        size,
        examples=batches * batch_examples,
        tokens=share * size.tokens,
        seconds=seconds,
        soft_stop_seconds=min(size.soft_stop_seconds, SOFT_STOP * seconds),
    )


@dataclass(frozen=True)
class Waiting:
    """A merged update that is to be repeated. `missed_by`: who repeated a task of `worker` last, if that came
    out differently; a second opinion is somebody else's."""

    report: int  # seq of the ledger
    worker: str
    tokens: int
    missed_by: str | None = None


def choose(
    waiting: Sequence[Waiting], *, worker: str, able: Sequence[str], speed: float, seconds: float, busy: int
) -> Waiting | None:
    """What `worker` shall repeat, the oldest first; None: nothing.

    `able` are those who may repeat tasks, `worker` among them, `busy` of whom do so now. It is given what it
    can do in `seconds` at `speed` tokens per second, and no second opinion on its own word while somebody
    else is there to give it.
    """
    if busy >= max(1, len(able) // BUSY):
        return None
    for one in waiting:
        if one.worker == worker or one.tokens > speed * seconds:
            continue
        if one.missed_by == worker and not set(able) <= {worker, one.worker}:
            continue
        return one
    return None


def likeness(first: float, both: float, second: float) -> float:
    """How alike two updates are, from the inner products (u, u), (u, v) and (v, v): -1 to 1.

    The cosine, times the length of the shorter over that of the longer: whoever trained less on the same
    examples points nearly the same way, and not as far.
    """
    longer = max(first, second)
    return both / longer if longer > 0 else 1.0
