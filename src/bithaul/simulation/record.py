"""What happened in a rehearsal, for its outcome and its picture; it judges nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from sqlalchemy import func, select

from bithaul.coordinator.database import fleet, ledger, runs, tables, versions, work
from bithaul.coordinator.database.tables import leases, repetitions, reports, scores, tasks
from bithaul.coordinator.identity.audit import subjects_of
from bithaul.exchange.weights import open_weights
from bithaul.model.layout import FloatVector
from bithaul.rounds.gates import AUDIT_COSINE
from bithaul.simulation.house import House
from bithaul.simulation.picture import Segment, Timeline


@dataclass(frozen=True)
class Facts:
    verdicts: dict[str, int]
    leases: dict[str, int]
    given_up: int  # examples in failed tasks
    rollbacks: int
    tokens: float  # in the newest version
    ledger: list[tuple[int, str, str, int | None, str | None]]


class Record:
    """`new_version` after each look of the merger; `losses` are (seconds since the beginning, loss);
    `theta` and `tokens` are those of the newest."""

    def __init__(self, house: House, *, begin: float, loss: Callable[[FloatVector], float]) -> None:
        self._house = house
        self._loss = loss
        self._begin = begin
        self._last = begin
        self.newest = 0
        self.longest_gap = 0.0
        self.losses: list[tuple[float, float]] = []
        self.contributors: list[tuple[float, int]] = []
        self.new_version(begin)

    def new_version(self, now: float) -> bool:
        """Whether there is a version that was not there before; remembers it."""
        c = self._house.c
        with c.database.read() as connection:
            run = runs.get_run(connection)
            row = versions.newest_version(connection, run.id)
        if row.version == self.newest:
            return False
        self.newest = row.version
        self.longest_gap = max(self.longest_gap, now - self._last)
        self._last = now
        weights = open_weights(c.blobs.get(row.sha256).path, expected_count=run.layout.size)
        self.theta, self.tokens = weights.vector, row.tokens_total
        self.losses.append((now - self._begin, self._loss(weights.vector)))
        self.contributors.append((now - self._begin, row.contributors))
        return True

    def storm_over(self, now: float) -> None:
        """A run that stands still until the end has no next version to show it by."""
        self.longest_gap = max(self.longest_gap, now - self._last)

    def quiet(self) -> bool:
        """Nothing is leased and nothing waits to be merged."""
        with self._house.c.database.read() as connection:
            run = runs.get_run(connection)
            open_leases = work.open_leases(connection, run.id)
            waiting = ledger.unmerged(connection, run.id)
        return not open_leases and not waiting

    def facts(self) -> Facts:
        c = self._house.c
        with c.database.read() as connection:
            verdicts = connection.execute(
                select(reports.c.verdict, func.count()).group_by(reports.c.verdict)
            ).all()
            ended = connection.execute(select(leases.c.state, func.count()).group_by(leases.c.state)).all()
            given_up = connection.execute(
                select(func.coalesce(func.sum(tasks.c.examples), 0)).where(tasks.c.state == "failed")
            ).scalar_one()
            back = connection.execute(
                select(func.count()).where(tables.versions.c.restores.is_not(None))
            ).scalar_one()
            ledger = connection.execute(
                select(
                    reports.c.seq,
                    reports.c.worker,
                    reports.c.verdict,
                    reports.c.merged_in,
                    reports.c.blob_sha256,
                )
            ).all()
        return Facts(
            {str(v): int(n) for v, n in verdicts},
            {str(s): int(n) for s, n in ended},
            int(given_up),
            int(back),
            self.tokens,
            [(row[0], row[1], row[2], row[3], row[4]) for row in ledger],
        )

    def judged(self, poisoned: Set[str]) -> dict[str, dict[str, int]]:
        """How many reports the gates clipped and refused for their size, of honest and poisoned machines; how
        many of their tasks the audit repeated, how many of these came out differently, and the strikes; how
        many of their reports have a loss score, and how many machines weigh less for it."""
        words = ("reports", "clipped", "refused", "repeated", "differed", "strikes", "scored", "doubted")
        found = {who: dict.fromkeys(words, 0) for who in ("honest", "poisoned")}
        with self._house.c.database.read() as connection:
            rows = connection.execute(select(reports.c.worker, reports.c.code, reports.c.clip)).all()
            runs_again = connection.execute(select(repetitions.c.worker, repetitions.c.likeness)).all()
            struck = subjects_of(connection, "worker.strike")
            scored = list(connection.execute(select(scores.c.worker)).scalars())
            doubted = [row.id for row in fleet.list_workers(connection) if row.trust.fit.factor < 1.0]
        for worker, code, clip in rows:
            counts = found["poisoned" if worker in poisoned else "honest"]
            counts["reports"] += 1
            counts["clipped"] += clip < 1.0
            counts["refused"] += code == "norm"
        for worker, likeness in runs_again:
            counts = found["poisoned" if worker in poisoned else "honest"]
            counts["repeated"] += 1
            counts["differed"] += likeness < AUDIT_COSINE
        for word, workers in (("strikes", struck), ("scored", scored), ("doubted", doubted)):
            for worker in workers:
                found["poisoned" if worker in poisoned else "honest"][word] += 1
        return found

    def timeline(self, title: str, *, names: Sequence[str], now: float) -> Timeline:
        """For the picture."""
        number = {name: i for i, name in enumerate(names)}
        with self._house.c.database.read() as connection:
            rows = connection.execute(
                select(
                    leases.c.worker, leases.c.granted_at, leases.c.ended_at, leases.c.state, reports.c.verdict
                )
                .join(reports, reports.c.lease_id == leases.c.id, isouter=True)
                .order_by(leases.c.id)
            ).all()
        segments = [
            Segment(number[worker], begin - self._begin, (end or now) - self._begin, _kind(state, verdict))
            for worker, begin, end, state, verdict in rows
        ]
        crashes = [(at - self._begin, point) for at, point in self._house.crashes]
        return Timeline(
            title, now - self._begin, len(names), segments, crashes, self.losses, self.contributors
        )


def _kind(state: str, verdict: str | None) -> str:
    if verdict is not None:
        return "merged" if verdict == "accepted" else "not merged"
    return state if state in ("expired", "released") else "other"
