"""One task from lease to outbox: fetch, train, take the difference, encode, store.

The result is an outbox entry, or why the lease ends without one. What was trained is reported, not what was
asked for. Delivery and receipts are the loop's part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from structlog.typing import FilteringBoundLogger

from bithaul.corpus.shards import Shard
from bithaul.errors import BithaulError, CorruptFile, InvalidInput, LayoutMismatch, OutOfDisk
from bithaul.exchange.messages import (
    HeldoutLoss,
    LeaseOutcome,
    ReportHeader,
    ShardRef,
    TaskMessage,
)
from bithaul.exchange.pseudo_gradient import encode_with_feedback, pseudo_gradient
from bithaul.exchange.weights import open_weights
from bithaul.training.trainer import StepReport, TrainResult
from bithaul.worker.health import Beacon
from bithaul.worker.link import Refused
from bithaul.worker.outbox import Entry, Outbox, payload_sha256
from bithaul.worker.pulse import Pulse
from bithaul.worker.residual import ResidualStore
from bithaul.worker.session import Session
from bithaul.worker.stop import Stop
from bithaul.worker.tools import Tools
from bithaul.worker.transfers import Transfers, Way

FloatVector = npt.NDArray[np.float32]
Examples = list[npt.NDArray[np.int32]]
_ASLEEP_SECONDS = 60.0


@dataclass(frozen=True)
class Ended:
    """The lease ends without an update; `code` is stable, `reason` a sentence for the owner."""

    outcome: LeaseOutcome
    code: str
    reason: str


class TaskRunner:
    """Runs tasks of one session. Opened shards stay open."""

    def __init__(
        self,
        session: Session,
        *,
        transfers: Transfers,
        outbox: Outbox,
        residuals: ResidualStore,
        pulse: Pulse,
        beacon: Beacon,
        stop: Stop,
        log: FilteringBoundLogger,
        tools: Tools,
    ) -> None:
        self._session = session
        self._transfers = transfers
        self._outbox = outbox
        self._residuals = residuals
        self._pulse = pulse
        self._beacon = beacon
        self._stop = stop
        self._log = log
        self._tools = tools
        self._shards: dict[str, Shard] = {}
        self._lineage = 1

    def run(self, task: TaskMessage) -> Entry | Ended:
        """Train one task. Raises only `Stopped`, `Gone`, `Unauthorized` and `Forbidden`."""
        self._pulse.begin(task.task, task.fence)
        try:
            start = self._weights(task)
            examples = self._examples(task)
            return self._train(task, start, examples)
        except _NoTask as error:
            return error.ended
        except LayoutMismatch as error:
            return Ended(LeaseOutcome.FAILED, "layout_mismatch", error.message)
        except OutOfDisk as error:
            return Ended(LeaseOutcome.FAILED, "out_of_disk", error.message)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            return Ended(
                LeaseOutcome.FAILED, "out_of_memory", "There was not enough memory for a training step."
            )

    def _weights(self, task: TaskMessage) -> FloatVector:
        try:
            path = self._transfers.weights(
                task.base_version, sha256=task.weights_sha256, size=task.weights_size, way=self._way(task)
            )
            weights = open_weights(path, expected_count=self._session.layout.size)
        except Refused as error:  # the base was pruned meanwhile: not this worker's fault
            raise _NoTask(LeaseOutcome.RELEASED, "weights_unavailable", error.message) from error
        except CorruptFile as error:
            code = "layout_mismatch" if error.error_code == "weights_count" else "weights_unavailable"
            raise _NoTask(LeaseOutcome.FAILED, code, error.message) from error
        if weights.version != task.base_version:
            raise _NoTask(
                LeaseOutcome.FAILED,
                "weights_unavailable",
                f"The file of version {task.base_version} says it is version {weights.version}.",
            )
        return weights.vector

    def _way(self, task: TaskMessage) -> Way | None:
        form = self._session.weight_format
        if form.delta is None or not task.weights_deltas:
            return None
        return Way(task.weights_deltas, self._session.layout, form)

    def _examples(self, task: TaskMessage) -> Examples:
        by_id = {shard.id: shard for shard in self._session.description.shards}
        examples: Examples = []
        for part in task.ranges:
            if part.shard not in by_id:
                raise _NoTask(
                    LeaseOutcome.FAILED, "shard_unavailable", f"The run has no shard {part.shard!r}."
                )
            try:
                examples += self._shard(by_id[part.shard]).slice(part.first, part.count)
            except InvalidInput as error:
                raise _NoTask(LeaseOutcome.FAILED, "shard_unavailable", error.message) from error
        return examples

    def _shard(self, ref: ShardRef) -> Shard:
        if ref.id not in self._shards:
            try:
                tokens = self._transfers.shard(ref.id, sha256=ref.sha256, size=ref.size)
                index = self._transfers.shard_index(ref.id, sha256=ref.index_sha256, size=ref.index_size)
                shard = Shard.open(tokens, index)
                shard.require_vocabulary(self._session.trainer.config.vocab_size)
                self._shards[ref.id] = shard
            except (Refused, CorruptFile) as error:
                raise _NoTask(LeaseOutcome.FAILED, "shard_unavailable", error.message) from error
        return self._shards[ref.id]

    def _train(self, task: TaskMessage, start: FloatVector, examples: Examples) -> Entry | Ended:
        session = self._session
        self._pulse.report("training", tokens=0)
        if task.lineage != self._lineage:  # the moments belong to weights that were given up
            session.trainer.reset_moments()
            self._lineage = task.lineage
        if task.audit:  # whoever repeats it has no other moments to begin with
            session.trainer.reset_moments()
        session.trainer.load(start)
        heldout = self._probe(task) if task.probe else None
        result = session.trainer.train(
            examples,
            progress_start=task.progress_start,
            progress_end=task.progress_end,
            seed=task.seed,
            soft_stop_seconds=task.soft_stop_seconds,
            on_step=self._watch(task),
        )
        self._tools.crash_points.hit("train.done")
        if result.dropped_steps:
            self._log.warning("steps dropped, not finite", task=task.task, steps=result.dropped_steps)
        if result.steps == 0 or result.examples == 0:
            if result.dropped_steps:
                return Ended(LeaseOutcome.FAILED, "loss_not_finite", "No step of the task had a finite loss.")
            return Ended(LeaseOutcome.RELEASED, "not_started", "The task was stopped before its first step.")
        self._log.info(
            "trained",
            task=task.task,
            base=task.base_version,
            tokens=result.tokens,
            seconds=round(result.seconds, 1),
            loss=round(result.loss_mean, 4),
            tokens_per_second=round(result.tokens / max(result.seconds, 1e-6)),
        )
        return self._pack(task, start, result, heldout)

    def _pack(
        self, task: TaskMessage, start: FloatVector, result: TrainResult, heldout: HeldoutLoss | None
    ) -> Entry | Ended:
        run, codec, layout = self._session.description, self._session.codec, self._session.layout
        self._pulse.report("uploading", tokens=result.tokens)
        u = pseudo_gradient(start, self._session.trainer.vector(), exact=codec.lossless)
        place = self._residuals.path(
            run=run.run, lineage=task.lineage, layout_hash=run.layout_hash, codec=codec.name
        )
        residual = self._residuals.load(place, count=layout.size, base_version=task.base_version)
        try:
            added = None if task.audit else residual
            payload, next_residual = encode_with_feedback(codec, u, added, layout)
        except InvalidInput as error:
            self._session.trainer.reset_moments()
            return Ended(LeaseOutcome.FAILED, "loss_not_finite", error.message)
        if task.audit and residual is not None and next_residual is not None:
            next_residual += residual  # it waits for the next update
        header = ReportHeader(
            codec=codec.name,
            run=run.run,
            layout_hash=run.layout_hash,
            lineage=task.lineage,
            base_version=task.base_version,
            task=task.task,
            fence=task.fence,
            examples=result.examples,
            tokens=result.tokens,
            steps=result.steps,
            seconds=result.seconds,
            loss_first=result.loss_first,
            loss_last=result.loss_last,
            loss_mean=result.loss_mean,
            heldout=heldout,
            payload_size=len(payload),
            payload_sha256=payload_sha256(payload),
        )
        entry = self._outbox.put(header, payload, residual=next_residual)
        self._tools.crash_points.hit("outbox.renamed")
        return entry

    def _probe(self, task: TaskMessage) -> HeldoutLoss | None:
        """The base version's held-out loss; a probe that cannot be had never fails the task."""
        ref = self._session.description.probe
        if ref is None:
            return None
        try:
            shard = self._shard(ref)
            measured = self._session.trainer.evaluate(shard.slice(0, len(shard)))
            return HeldoutLoss(version=task.base_version, loss=measured.loss, tokens=measured.tokens)
        except (_NoTask, ValueError, BithaulError) as error:
            self._log.warning("held-out loss not measured", version=task.base_version, reason=str(error))
            return None

    def _watch(self, task: TaskMessage) -> Callable[[StepReport], bool]:
        """After each inner step: say how far it is, and whether to go on."""
        began = self._tools.clock()
        asleep = self._tools.wall_clock() - began

        def go_on(step: StepReport) -> bool:
            nonlocal asleep
            self._tools.crash_points.hit("train.mid")
            self._beacon.touch()
            now = self._tools.clock()
            rate = step.tokens / max(now - began, 1e-6)
            self._pulse.report("training", tokens=step.tokens, loss=step.loss, tokens_per_second=rate)
            if self._tools.wall_clock() - now - asleep > _ASLEEP_SECONDS:
                asleep = self._tools.wall_clock() - now
                self._ask_after_sleep()
            orders = self._pulse.orders
            return not (self._stop.requested or orders.drain or orders.closed == task.fence)

        return go_on

    def _ask_after_sleep(self) -> None:
        self._log.info("this machine was asleep, asking whether the task is still wanted")
        try:
            self._pulse.beat()
        except BithaulError as error:
            self._log.warning("no answer after sleep, going on", reason=error.message)


class _NoTask(Exception):
    def __init__(self, outcome: LeaseOutcome, code: str, reason: str) -> None:
        super().__init__(reason)
        self.ended = Ended(outcome, code, reason)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
