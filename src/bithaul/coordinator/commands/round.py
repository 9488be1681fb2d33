"""Facts about the current round, gathered once and used by claim and merge alike.

A claim needs its sums only (`read_outline`), and so does whoever asks whether a merge can be due at all
(`read_glance`): the database adds them up. A merge looks at everybody.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from sqlalchemy import Connection

from bithaul.coordinator.database import fleet, ledger, versions, work
from bithaul.coordinator.database.fleet import WorkerRow
from bithaul.coordinator.database.ledger import ReportRow
from bithaul.coordinator.database.runs import RunRow, Spent
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.database.work import LeaseRow
from bithaul.exchange.messages import RunState
from bithaul.rounds.facts import Contribution, Glance, OpenLease, RoundFacts
from bithaul.rounds.merging import last_aim
from bithaul.rounds.sizing import enough, present_seconds


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The round without its members."""

    run: RunRow
    version: VersionRow
    spent: Spent
    tick: float  # planned end
    length: float  # planned length
    now: float

    @property
    def remaining_tokens(self) -> float:
        """Of the token budget, not covered by merged, accepted or leased work."""
        budget = self.run.budget_tokens
        return float("inf") if budget is None else budget - self.spent.covered

    @property
    def remaining_seconds(self) -> float:
        budget = self.run.budget_seconds
        return float("inf") if budget is None else budget - self.run.seconds_at(self.now)

    @property
    def work_left(self) -> bool:
        """Whether new leases make sense."""
        return self._open(self.spent.covered)

    def _open(self, tokens: float) -> bool:
        budget = self.run.budget_tokens
        if budget is not None and enough(
            covered_tokens=tokens, budget_tokens=budget, batch_tokens=self.run.batch_tokens
        ):
            return False
        return self.remaining_seconds > 0


@dataclass(frozen=True, kw_only=True)
class Round(Outline):
    """Everything that decides about merges now. `reports` are accepted and not merged, by seq."""

    reports: Sequence[ReportRow]
    leases: Sequence[LeaseRow]  # without repetitions, which bring this round nothing
    workers: Sequence[WorkerRow]
    repeating: Set[str]  # workers that hold one

    @property
    def complete(self) -> bool:
        """The budget is reached and nothing is under way: the run is finished."""
        return not self.leases and not self.reports and not self._open(self.spent.merged)

    @property
    def may_work(self) -> list[WorkerRow]:
        """Who may bring this round something."""
        return [w for w in self.workers if w.may_work(self.now) and w.id not in self.repeating]

    @property
    def facts(self) -> RoundFacts:
        return RoundFacts(
            now=self.now,
            tick=self.tick,
            length=self.length,
            contributions=[
                Contribution(
                    seq=r.seq,
                    worker=r.worker,
                    tokens=r.tokens,
                    staleness=self.version.version - r.base_version,
                    received_at=r.received_at,
                    norm=r.norm,
                    steps=r.steps,
                    clip=r.clip,
                    trust=r.weight,
                )
                for r in self.reports
            ],
            leases=[
                OpenLease(lease.worker, lease.base_version == self.version.version, lease.aimed_at)
                for lease in self.leases
            ],
            workers=frozenset(
                w.id for w in self.may_work if self.now - w.last_seen <= present_seconds(self.length)
            ),
            work_left=self.work_left,
            paused=self.run.state is RunState.PAUSED,
            active=len(self.may_work),
        )


def read_tick(connection: Connection, run: RunRow, version: VersionRow, *, now: float) -> tuple[float, float]:
    """(planned end, planned length) of the round that began with the first lease on `version`."""
    first = work.first_lease(connection, run.id, version.version) if run.rule.rounds else None
    if first is None:
        return now + run.task_seconds, run.task_seconds
    length = max(run.task_seconds, first.aimed_at - first.granted_at)
    return first.granted_at + length, length


def read_glance(connection: Connection, run: RunRow, *, now: float) -> Glance:
    version = versions.newest_version(connection, run.id)
    tick, length = read_tick(connection, run, version, now=now)
    count, first = ledger.unmerged_sums(connection, run.id)
    late = last_aim(tick=tick, length=length)
    opened, aimed = work.open_and_aimed(connection, run.id, version=version.version, late=late)
    return Glance(now, tick, length, count, first, opened, aimed)


def read_outline(connection: Connection, run: RunRow, *, now: float) -> Outline:
    version = versions.newest_version(connection, run.id)
    tick, length = read_tick(connection, run, version, now=now)
    return Outline(
        run=run,
        version=version,
        spent=Spent(
            merged=version.tokens_total,
            accepted=ledger.unmerged_tokens(connection, run.id),
            leased=work.leased_tokens(connection, run.id),
        ),
        tick=tick,
        length=length,
        now=now,
    )


def read_round(connection: Connection, run: RunRow, *, now: float) -> Round:
    version = versions.newest_version(connection, run.id)
    tick, length = read_tick(connection, run, version, now=now)
    reports = ledger.unmerged(connection, run.id)
    held = work.open_leases(connection, run.id)
    leases = [lease for lease in held if lease.repeats is None]
    return Round(
        run=run,
        version=version,
        reports=reports,
        leases=leases,
        repeating={lease.worker for lease in held if lease.repeats is not None},
        workers=fleet.list_workers(connection),
        spent=Spent(
            merged=version.tokens_total,
            accepted=sum(r.tokens for r in reports),
            leased=sum(lease.expected_tokens for lease in leases),
        ),
        tick=tick,
        length=length,
        now=now,
    )
