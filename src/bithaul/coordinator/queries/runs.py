"""The run and its versions, for its operator (GET /api/run, `bithaul run show`)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, versions
from bithaul.exchange.messages import RunState


class VersionView(BaseModel):
    """One version. `in_force`: it leads to the newest; `kept`: its weights are still there to go back to."""

    model_config = ConfigDict(frozen=True)

    version: int
    lineage: int
    restores: int | None  # a rollback made it
    automatic: bool  # that rollback
    in_force: bool
    kept: bool
    time: float
    tokens: int  # of all training up to it
    contributors: int
    train_loss: float | None
    heldout_loss: float | None


class RunView(BaseModel):
    model_config = ConfigDict(frozen=True)

    run: str
    state: RunState
    paused_because: str  # empty when a person paused it
    progress: float  # 0..1, share of the budget
    budget_tokens: float | None
    budget_seconds: float | None
    tokens: int
    seconds: float
    merge_rule: str
    merge_options: Mapping[str, float | str]  # those that were given
    gates: list[str]
    max_update_norm: float | None
    codec: str
    weights: str  # how versions are published: fp32 or bf16
    version: int
    lineage: int
    versions: list[VersionView]  # oldest first


def run_view(c: Coordinator) -> RunView:
    """Raises `NotFound` when no run was created."""
    now = c.clock.now()
    with c.database.read() as connection:
        run = runs.get_run(connection)
        rows = versions.list_versions(connection, run.id)
        tokens = runs.spent(connection, run.id).merged
    live = {row.version for row in versions.live(rows)}
    return RunView(
        run=run.name,
        state=run.state,
        paused_because=run.paused_because,
        progress=run.progress_at(now, tokens=tokens),
        budget_tokens=run.budget_tokens,
        budget_seconds=run.budget_seconds,
        tokens=tokens,
        seconds=run.seconds_at(now),
        merge_rule=run.merge_rule,
        merge_options=run.merge_options,
        gates=[str(gate) for gate in run.gates],
        max_update_norm=run.max_update_norm,
        codec=run.codec,
        weights=run.weights,
        version=rows[-1].version,
        lineage=rows[-1].lineage,
        versions=[
            VersionView(
                version=row.version,
                lineage=row.lineage,
                restores=row.restores,
                automatic=row.automatic,
                in_force=row.version in live,
                kept=row.retired_at is None,
                time=row.created_at,
                tokens=row.tokens_total,
                contributors=row.contributors,
                train_loss=row.train_loss,
                heldout_loss=row.heldout_loss,
            )
            for row in rows
        ],
    )
