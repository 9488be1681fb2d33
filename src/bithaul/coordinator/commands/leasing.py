"""What every lease says, whether its task is new or repeats one: how much work, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.database.work import TaskRow
from bithaul.exchange.codecs import codec_named
from bithaul.rounds.sizing import LAST_FACTOR, lease_seconds


@dataclass(frozen=True)
class Terms:
    """Of one worker's lease of one task: `tokens` expected, which take `training` seconds at its speed;
    after `seconds` without a word the lease ends, and however often it is renewed after `last_seconds`."""

    tokens: float
    training: float
    seconds: float

    @property
    def last_seconds(self) -> float:
        return LAST_FACTOR * self.seconds


def terms_of(run: RunRow, worker: WorkerRow, task: TaskRow, base: VersionRow) -> Terms:
    tokens = task.examples * run.tokens_per_example
    training = tokens / worker.planning_speed
    return Terms(
        tokens,
        training,
        lease_seconds(
            task_seconds=run.task_seconds,
            duration=training,
            weights_bytes=base.size,
            payload_bytes=codec_named(run.codec).encoded_size(run.layout),
        ),
    )


def common_values(
    c: Coordinator, run: RunRow, worker: WorkerRow, base: VersionRow, terms: Terms, *, now: float
) -> dict[str, Any]:
    """The columns that do not depend on what the lease is for; the fence is drawn here."""
    return {
        "run_id": run.id,
        "worker": worker.id,
        "fence": c.ids.fence(),
        "base_version": base.version,
        "granted_at": now,
        "deadline": now + terms.seconds,
        "last_deadline": now + terms.last_seconds,
        "expected_tokens": terms.tokens,
    }
