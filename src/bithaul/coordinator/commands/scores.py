"""The loss score: which reports are looked at, and what looking at one finds.

The rules are `rounds.scores`. An update starts from the published weights of its base, as its worker loaded
them, and is looked at before and after itself on examples of its own task and on others of the corpus. That
is one report at a time, off the request path, outside every transaction; torch is loaded for the first. What
cannot be looked at any more goes without a score. A crash loses at most the work on one.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, ledger, runs, scores, versions, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.ledger import ReportRow
from bithaul.coordinator.database.runs import RunRow, ShardRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.corpus.shards import Shard
from bithaul.errors import CorruptFile, InvalidInput, NotFound
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import read_header
from bithaul.exchange.weights import FloatVector, open_weights
from bithaul.rounds import positions
from bithaul.rounds.gates import Gate
from bithaul.rounds.positions import Span
from bithaul.rounds.scores import Score, drawn, sample, score

CHUNK_VALUES = 262_144
Losses = Callable[[FloatVector], Sequence[float]]


@dataclass(frozen=True)
class Scored:
    """`found` is None where the report could not be looked at."""

    report: ReportRow
    found: Score | None
    seconds: float


@dataclass(frozen=True)
class _Asked:
    """A report that waits, and where what it needs lies."""

    run: RunRow
    report: ReportRow
    base: VersionRow
    spans: Sequence[Span]  # that it used
    shards: Sequence[ShardRow]


def draw_score(c: Coordinator, run: RunRow, worker: WorkerRow) -> bool:
    """Whether the accepted report that is being recorded shall get a score. Nobody is told."""
    if Gate.SCORE not in run.gates or worker.pinned:
        return False
    return drawn(_random(c) / 2.0**64, worker.trust.fit)


def score_next(c: Coordinator) -> Scored | None:
    """Score the oldest report that waits; None: none does."""
    with c.database.read() as connection:
        asked = _asked(connection)
    if asked is None:
        return None
    began = c.clock.monotonic()
    found = _score(c, asked)
    seconds = c.clock.monotonic() - began
    c.crash_points.hit("score.computed")
    with c.database.write() as connection:
        report = ledger.get_report(connection, asked.report.seq)
        if found is None or report.discarded_in is not None:
            scores.give_up(connection, [report.seq])
            found = None
        else:
            scores.insert(connection, report, found, seconds=seconds, now=c.clock.now())
            _count(connection, report.worker, found)
        c.crash_points.hit("score.recorded")
    c.crash_points.hit("score.committed")
    return Scored(report, found, seconds)


def _random(c: Coordinator) -> int:
    """64 bits that are no function of anything that a worker is told."""
    return int.from_bytes(hashlib.blake2b(c.ids.fence().encode(), digest_size=8).digest(), "big")


def _asked(connection: Connection) -> _Asked | None:
    run = runs.find_run(connection)
    if run is None:
        return None
    found = scores.waiting(connection, run.id)
    if not found:
        return None
    report = found[0]
    base = versions.find_version(connection, run.id, report.base_version)
    assert base is not None
    return _Asked(
        run=run,
        report=report,
        base=base,
        spans=work.get_task(connection, report.task_id).positions,
        shards=runs.list_shards(connection, run.id, "train"),
    )


def _count(connection: Connection, worker: str, found: Score) -> None:
    trust = fleet.get_worker(connection, worker).trust
    after = replace(trust, fit=trust.fit.with_score(found.value))
    fleet.update_worker(connection, worker, **fleet.trust_values(after))


def _score(c: Coordinator, asked: _Asked) -> Score | None:
    """None where it cannot be looked at: its files are gone or damaged, or there are too few examples."""
    try:
        parts = _parts(c, asked)
        if parts is None:
            return None
        start = open_weights(c.blobs.get(asked.base.sha256).path, expected_count=asked.run.layout.size).vector
        end = start - _update(c, asked)
        losses = _judge(asked.run, parts)
        falls = [a - b for a, b in zip(losses(start), losses(end), strict=True)]
    except (NotFound, FileNotFoundError, CorruptFile, InvalidInput):  # damage is the merger's to find
        return None
    half = len(falls) // 2
    return score(falls[:half], falls[half:])


def _parts(c: Coordinator, asked: _Asked) -> list[list[NDArray[np.int32]]] | None:
    """Examples that the task used, in parts, and then as many parts of others; None: too few."""
    run = asked.run
    shards = [
        Shard.open(c.blobs.get(row.sha256).path, c.blobs.get(row.index_sha256).path) for row in asked.shards
    ]
    borders = [0, *accumulate(len(shard) for shard in shards)]
    found = positions.pieces(
        asked.spans, shard_sizes=[len(shard) for shard in shards], seed=run.seed, block=run.position_block
    )
    used = chain.from_iterable(
        range(borders[p.shard] + p.first, borders[p.shard] + p.first + p.count) for p in found
    )
    lengths = np.concatenate([shard.lengths for shard in shards])
    chosen = sample(used, np.maximum(lengths - 1, 0), seed=_random(c))
    if chosen is None:
        return None

    def example(number: int) -> NDArray[np.int32]:
        shard = bisect_right(borders, number) - 1
        return shards[shard].example(number - borders[shard])

    return [[example(number) for number in part] for part in (*chosen.own, *chosen.other)]


def _update(c: Coordinator, asked: _Asked) -> FloatVector:
    """float32 [parameters], as it was sent: what a gate clips of it is the worker's work all the same."""
    run, sha256 = asked.run, asked.report.blob_sha256
    assert sha256 is not None
    update = np.zeros(run.layout.size, np.float32)
    with c.blobs.get(sha256).path.open("rb") as file:
        read_header(file)
        for piece in codec_named(run.codec).pieces(file, run.layout, chunk_values=CHUNK_VALUES):
            update[piece.offset : piece.offset + piece.size] = piece.values()
    return update


def _judge(run: RunRow, parts: Sequence[Sequence[NDArray[np.int32]]]) -> Losses:
    """What gives the loss of each part for a vector. Loads torch and makes a model, for this report only."""
    from bithaul.model.products import default_path
    from bithaul.training.recipe import TrainingRecipe
    from bithaul.training.trainer import Trainer

    trainer = Trainer(
        run.model,
        TrainingRecipe.model_validate(run.recipe),
        label_token=run.label_token,
        threads=1,
        path=default_path(),
    )

    def losses(vector: FloatVector) -> list[float]:
        trainer.load(vector)
        return [trainer.evaluate(part).loss for part in parts]

    return losses
