"""The run and its versions: what is trained, with which rule and budget; what each version is made of."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import browse, runs, versions
from bithaul.coordinator.queries.dashboard import VersionView
from bithaul.errors import NotFound
from bithaul.exchange.messages import RunState

PAGE = 50


class RunFacts(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    state: RunState
    progress: float
    parameters: int
    model: Mapping[str, object]
    codec: str
    weights: str  # how versions are published: fp32 or bf16
    merge_rule: str
    merge_options: Mapping[str, object]
    budget_tokens: float | None
    budget_seconds: float | None
    tokens: int
    seconds: float  # of active time
    task_seconds: float
    shards: int
    examples: int
    corpus_tokens: int
    created_at: float


class RunPageView(BaseModel):
    model_config = ConfigDict(frozen=True)

    now: float
    run: RunFacts | None
    rows: list[VersionView]  # newest first
    older: int | None


class Contribution(BaseModel):
    """One worker's part in a version."""

    model_config = ConfigDict(frozen=True)

    worker: str
    reports: int
    tokens: int
    loss: float


class VersionPageView(BaseModel):
    model_config = ConfigDict(frozen=True)

    now: float
    version: VersionView
    newest: int
    contributions: list[Contribution]


def run_page(
    c: Coordinator, *, before: int | None = None, kept: bool = False, count: int = PAGE
) -> RunPageView:
    """Versions below `before`; with `kept` only those whose weights can be had. Works without a run too."""
    now = c.clock.now()
    with c.database.read() as connection:
        run = runs.find_run(connection)
        if run is None:
            return RunPageView(now=now, run=None, rows=[], older=None)
        rows = browse.version_page(connection, run.id, before=before, kept=kept, count=count + 1)
        merged = versions.newest_version(connection, run.id).tokens_total  # what the ledger adds up to
        shards = runs.list_shards(connection, run.id, "train")
    facts = RunFacts(
        name=run.name,
        state=run.state,
        progress=run.progress_at(now, tokens=merged),
        parameters=run.layout.size,
        model=run.model.model_dump(mode="json"),
        codec=run.codec,
        weights=run.weights,
        merge_rule=run.merge_rule,
        merge_options=dict(run.merge_options),
        budget_tokens=run.budget_tokens,
        budget_seconds=run.budget_seconds,
        tokens=merged,
        seconds=run.seconds_at(now),
        task_seconds=run.task_seconds,
        shards=len(shards),
        examples=sum(s.examples for s in shards),
        corpus_tokens=sum(s.tokens for s in shards),
        created_at=run.created_at,
    )
    shown = rows[:count]
    return RunPageView(
        now=now,
        run=facts,
        rows=[VersionView.of(row) for row in shown],
        older=shown[-1].version if len(rows) > count else None,
    )


def version_page(c: Coordinator, version: int) -> VersionPageView:
    """Raises `NotFound`."""
    with c.database.read() as connection:
        run = runs.get_run(connection)
        row = versions.find_version(connection, run.id, version)
        if row is None:
            raise NotFound(f"There is no weight version {version}.", code="unknown_version")
        parts = browse.contributions(connection, run.id, version)
        newest = versions.newest_version(connection, run.id).version
    return VersionPageView(
        now=c.clock.now(),
        version=VersionView.of(row),
        newest=newest,
        contributions=[
            Contribution(worker=w, reports=count, tokens=tokens, loss=loss)
            for w, count, tokens, loss in parts
        ],
    )
