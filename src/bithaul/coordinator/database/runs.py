"""Rows of runs and shards: how they are read and written. A coordinator holds one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Text, bindparam, cast, func, insert, select

from bithaul.coordinator.database.prepared import Prepared, update_row
from bithaul.coordinator.database.tables import leases, reports, runs, shards, tasks
from bithaul.errors import NotFound
from bithaul.exchange.messages import RunDescription, RunState, ShardRef
from bithaul.exchange.weights import WeightFormat, weights_named
from bithaul.model.config import ModelConfig
from bithaul.model.layout import Layout, layout_of
from bithaul.rounds.gates import Gate
from bithaul.rounds.merging import MergeRule
from bithaul.rounds.rules import rule_named
from bithaul.rounds.sizing import progress_share

LONGEST_GAP = 15.0  # the merger looks more often than that; a longer silence was a stopped coordinator


@dataclass(frozen=True)
class RunRow:
    """One run as stored. Times in seconds, budgets None when not set."""

    id: int
    name: str
    state: RunState
    model: ModelConfig
    recipe: Mapping[str, Any]
    layout_hash: str
    tokenizer_sha256: str
    label_token: int | None
    codec: str
    weights: str
    merge_rule: str
    merge_options: Mapping[str, float | str]
    budget_tokens: float | None
    budget_seconds: float | None
    task_seconds: float
    probe_every: int
    max_update_norm: float | None
    gates: tuple[Gate, ...]
    paused_because: str
    seed: int
    tokens_per_example: float
    position_block: int
    position_cursor: int
    active_seconds: float
    active_anchor: float | None
    created_at: float

    @property
    def layout(self) -> Layout:
        return layout_of(self.model)

    @property
    def weight_format(self) -> WeightFormat:
        """In which versions are published."""
        return weights_named(self.weights)

    @property
    def rule(self) -> MergeRule:
        return _rule(self.merge_rule, tuple(self.merge_options.items()))

    @property
    def batch_examples(self) -> int:
        """Examples of one inner batch."""
        return max(1, int(self.recipe.get("batch_examples", 1)))

    @property
    def batch_tokens(self) -> float:
        return self.batch_examples * self.tokens_per_example

    def seconds_at(self, now: float) -> float:
        """Active seconds up to now; a gap longer than `LONGEST_GAP` was not active."""
        if self.active_anchor is None or not 0 <= now - self.active_anchor <= LONGEST_GAP:
            return self.active_seconds
        return self.active_seconds + now - self.active_anchor

    def progress_at(self, now: float, *, tokens: float) -> float:
        """Share of the budget used when `tokens` are done, 0..1."""
        if self.state is RunState.FINISHED:
            return 1.0
        return progress_share(
            tokens=tokens,
            budget_tokens=self.budget_tokens,
            seconds=self.seconds_at(now),
            budget_seconds=self.budget_seconds,
        )


@dataclass(frozen=True)
class ShardRow:
    """One corpus shard; `kind` is train, heldout or probe."""

    id: str
    run_id: int
    kind: str
    ordinal: int
    examples: int
    tokens: int
    size: int
    sha256: str
    index_size: int
    index_sha256: str

    @property
    def ref(self) -> ShardRef:
        return ShardRef(
            id=self.id,
            examples=self.examples,
            tokens=self.tokens,
            size=self.size,
            sha256=self.sha256,
            index_size=self.index_size,
            index_sha256=self.index_sha256,
        )


_FIELDS = [field.name for field in fields(RunRow)]
_PARSED = {"model", "recipe", "merge_options"}  # JSON that does not change: parsed once, not at every poll
_RUN = Prepared(
    select(*(cast(runs.c[name], Text) if name in _PARSED else runs.c[name] for name in _FIELDS))
    .order_by(runs.c.id.desc())
    .limit(1)
)
_SHARDS = Prepared(
    select(*(shards.c[field.name] for field in fields(ShardRow)))
    .where(shards.c.run_id == bindparam("run"), shards.c.kind == bindparam("wanted"))
    .order_by(shards.c.ordinal)
)


def find_run(connection: Connection) -> RunRow | None:
    row = _RUN.first(connection)
    if row is None:
        return None
    values = dict(zip(_FIELDS, row, strict=True))
    values["state"] = RunState(values["state"])
    values["model"] = _model(values["model"])
    values["recipe"] = _parsed(values["recipe"])
    values["merge_options"] = _parsed(values["merge_options"])
    values["gates"] = tuple(Gate(name) for name in values["gates"])
    return RunRow(**values)


@lru_cache(maxsize=16)
def _model(stored: str) -> ModelConfig:
    return ModelConfig.model_validate_json(stored)


@lru_cache(maxsize=16)
def _parsed(stored: str) -> Mapping[str, Any]:
    return MappingProxyType(json.loads(stored))


@lru_cache(maxsize=16)
def _rule(name: str, options: tuple[tuple[str, float | str], ...]) -> MergeRule:
    return rule_named(name, dict(options))


def get_run(connection: Connection) -> RunRow:
    run = find_run(connection)
    if run is None:
        raise NotFound("This coordinator has no run yet; create one first.", code="no_run")
    return run


def insert_run(connection: Connection, values: Mapping[str, Any]) -> int:
    return int(connection.execute(insert(runs).values(**values).returning(runs.c.id)).scalar_one())


def update_run(connection: Connection, run_id: int, **values: object) -> None:
    update_row(connection, runs, {"id": run_id}, values)


def tick_active(connection: Connection, run: RunRow, *, now: float, busy: bool) -> None:
    """Carry `active_seconds` to now; it goes on from here only while somebody works."""
    if busy or run.active_anchor is not None:
        update_run(
            connection, run.id, active_seconds=run.seconds_at(now), active_anchor=now if busy else None
        )


def insert_shards(connection: Connection, rows: Sequence[ShardRow]) -> None:
    connection.execute(insert(shards), [asdict(row) for row in rows])


def list_shards(connection: Connection, run_id: int, kind: str) -> list[ShardRow]:
    return [ShardRow(*row) for row in _SHARDS.all(connection, run=run_id, wanted=kind)]


def find_shard(connection: Connection, shard: str) -> ShardRow | None:
    row = connection.execute(select(shards).where(shards.c.id == shard)).mappings().first()
    return None if row is None else ShardRow(**row)


def describe(connection: Connection, run: RunRow, *, heartbeat_seconds: float) -> RunDescription:
    """The run as workers see it."""
    probes = list_shards(connection, run.id, "probe")
    return RunDescription(
        run=run.name,
        state=run.state,
        model=run.model.model_dump(mode="json"),
        recipe=dict(run.recipe),
        layout_hash=run.layout_hash,
        tokenizer_sha256=run.tokenizer_sha256,
        label_token=run.label_token,
        codec=run.codec,
        weight_format=run.weight_format.name,
        shards=[s.ref for s in list_shards(connection, run.id, "train")],
        probe=probes[0].ref if probes else None,
        heartbeat_seconds=heartbeat_seconds,
    )


@dataclass(frozen=True)
class Spent:
    """How much of a token budget is done (`merged`), waiting (`accepted`) or being worked on (`leased`)."""

    merged: int
    accepted: int
    leased: float

    @property
    def reported(self) -> int:
        return self.merged + self.accepted

    @property
    def covered(self) -> float:
        return self.reported + self.leased


def spent(connection: Connection, run_id: int) -> Spent:
    in_ledger = (
        select(reports.c.merged_in.is_not(None).label("merged"), func.sum(reports.c.tokens))
        .where(reports.c.run_id == run_id, reports.c.verdict == "accepted", reports.c.discarded_in.is_(None))
        .group_by(reports.c.merged_in.is_not(None))
    )
    sums = {bool(merged): int(total) for merged, total in connection.execute(in_ledger)}
    leased = connection.execute(
        select(func.coalesce(func.sum(leases.c.expected_tokens), 0.0))
        .join(tasks, tasks.c.id == leases.c.task_id)
        .where(leases.c.run_id == run_id, leases.c.state == "open", leases.c.repeats.is_(None))
    ).scalar_one()
    return Spent(sums.get(True, 0), sums.get(False, 0), float(leased))
