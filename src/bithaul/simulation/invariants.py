"""What must hold whatever fails (exchange.md §13), checked from outside: its own connection, its own memory.

After every event what it may have touched is read and compared with what was there before: moves of tasks,
conservation of positions, receipts. After every version, every restart and at the end everything is read:
positions in exactly one place, the ledger against versions, blobs against their hashes, and the weights
computed again from the ledger. The checker remembers on its own what was merged and acknowledged, so a row
that changes or vanishes later is seen. A broken promise raises `Broken`; counts that the report gives are
kept as well.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bithaul.exchange.messages import Receipt, Verdict
from bithaul.rounds.leases import TASK_MOVES, TaskState
from bithaul.simulation.house import House
from bithaul.simulation.replay import Replay

_ROUNDING = 1e-6  # seconds
REACH = {state: {state} for state in TaskState}  # what a task can become, in any number of moves
for _ in TaskState:
    for _state, _next in REACH.items():
        _next |= {after for here in tuple(_next) for after in TASK_MOVES[here]}


Memory = tuple[Any, ...]


class Broken(AssertionError):
    """A promise was not kept."""


@dataclass
class Counts:
    """Each is 0 in a run that kept its promises."""

    double_applied: int = 0
    acknowledged_lost: int = 0
    slices_uncovered: int = 0


@dataclass(frozen=True)
class Task:
    state: TaskState
    examples: int
    spans: tuple[tuple[int, int], ...]

    @property
    def held(self) -> int:
        """Examples it is the place of; after a rollback another task has them."""
        return 0 if self.state is TaskState.DISCARDED else self.examples


class Checker:
    """`step` after every event, `audit` when something big happened, `final` when all is quiet."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._file = house.directory / "coordinator.db"
        self._connection: sqlite3.Connection | None = None
        self._generation = -1
        self._tasks: dict[int, Task] = {}
        self._examples = 0
        self._newest = 0
        self._seq = 0
        self._merged: dict[int, int] = {}  # seq -> version
        self._accepted: dict[int, int] = {}  # task -> seq
        self._receipts: dict[tuple[str, int, str], Receipt] = {}
        self._seen = -1
        self.replay = Replay(house)
        self.counts = Counts()
        self.audits = 0

    def heard(self, worker: str, receipt: Receipt) -> None:
        """A receipt reached a worker. The same report never has another one."""
        key = (worker, receipt.task, receipt.fence)
        before = self._receipts.setdefault(key, receipt)
        if before != receipt:
            raise Broken(f"the receipt of {key} was {before} and became {receipt}")

    @property
    def acknowledged(self) -> int:
        return sum(r.verdict is Verdict.ACCEPTED for r in self._receipts.values())

    # -- a coordinator from a backup ------------------------------------------------------------------

    def remember(self) -> Memory:
        """What is known when a backup is made; `forget_since` goes back to it."""
        return deepcopy(
            (
                self._tasks,
                self._examples,
                self._newest,
                self._seq,
                self._merged,
                self._accepted,
                self._receipts,
                self.replay.memory,
            )
        )

    def forget_since(self, memory: Memory) -> int:
        """The backup is the truth now. How many acknowledged updates went with the disk: its operator's loss,
        counted apart from what the coordinator itself loses, which must be none."""
        before = self.acknowledged
        (
            self._tasks,
            self._examples,
            self._newest,
            self._seq,
            self._merged,
            self._accepted,
            self._receipts,
            self.replay.memory,
        ) = deepcopy(memory)
        return before - self.acknowledged

    # -- after every event ----------------------------------------------------------------------------

    def step(self) -> None:
        """Nothing, when nobody wrote."""
        if not self._house.up:
            return
        db = self._open()
        version = db.execute("PRAGMA data_version").fetchone()[0]
        if version == self._seen:
            return
        self._seen = version
        touched = self._new_reports(db)
        touched |= {
            task
            for (task,) in db.execute(
                "SELECT task_id FROM leases WHERE state = 'open' AND granted_at >= ?",
                (self._house.time.now(),),
            )
        }
        rows = db.execute(
            f"SELECT id, state, examples, positions FROM tasks WHERE id > ? OR id IN "  # noqa: S608 - numbers
            f"({','.join(map(str, sorted(touched)))})",
            (self._newest,),
        )
        for row in rows:
            self._look(*row)
        self._conserved(db)

    def _new_reports(self, db: sqlite3.Connection) -> set[int]:
        touched = set()
        rows = db.execute(
            "SELECT seq, task_id, worker, fence, verdict FROM reports WHERE seq > ? ORDER BY seq",
            (self._seq,),
        )
        for seq, task, worker, fence, verdict in rows:
            self._seq = seq
            touched.add(task)
            if verdict != Verdict.ACCEPTED:
                continue
            if task in self._accepted:
                self.counts.double_applied += 1
                raise Broken(f"task {task} has a second accepted report, {seq} of {worker} ({fence})")
            self._accepted[task] = seq
        return touched

    def _look(self, number: int, state: str, examples: int, positions: str) -> None:
        now = Task(TaskState(state), examples, tuple((s, n) for s, n in json.loads(positions)))
        before = self._tasks.get(number)
        if before is not None:
            if now.state not in REACH[before.state]:
                raise Broken(f"task {number} went from {before.state} to {now.state}")
            self._examples -= before.held
        self._tasks[number] = now
        self._newest = max(self._newest, number)
        self._examples += now.held

    def _conserved(self, db: sqlite3.Connection) -> None:
        cursor = db.execute("SELECT position_cursor FROM runs").fetchone()[0]
        free = db.execute("SELECT coalesce(sum(count), 0) FROM returned_positions").fetchone()[0]
        if self._examples + free != cursor:
            self.counts.slices_uncovered += abs(cursor - self._examples - free)
            raise Broken(
                f"{cursor} positions were cut, {self._examples} are in tasks and {free} are returned"
            )

    # -- now and then ---------------------------------------------------------------------------------

    def audit(self) -> None:
        """Everything, from the rows."""
        if not self._house.up:
            return
        self.audits += 1
        db = self._open()
        self._new_reports(db)
        for row in db.execute("SELECT id, state, examples, positions FROM tasks"):
            self._look(*row)
        self._conserved(db)
        self._places(db)
        self._ledger(db)
        self._leases(db)
        self._told(db)
        self.replay.catch_up(db)

    def _places(self, db: sqlite3.Connection) -> None:
        """Every position below the cursor in exactly one place."""
        spans = [span for task in self._tasks.values() if task.held for span in task.spans]
        spans += db.execute("SELECT start, count FROM returned_positions").fetchall()
        cursor = db.execute("SELECT position_cursor FROM runs").fetchone()[0]
        at = 0
        for start, count in sorted(spans):
            if start < at:
                self.counts.double_applied += min(count, at - start)
                raise Broken(f"positions {start} to {min(at, start + count)} are in two places")
            if start > at:
                self.counts.slices_uncovered += start - at
                raise Broken(f"positions {at} to {start} are in no place")
            at = start + count
        if at != cursor:
            self.counts.slices_uncovered += abs(cursor - at)
            raise Broken(f"positions end at {at}, {cursor} were cut")

    def _ledger(self, db: sqlite3.Connection) -> None:
        rows = db.execute(
            "SELECT seq, task_id, tokens, merged_in FROM reports WHERE verdict = 'accepted'"
        ).fetchall()
        self._given_up(db)
        tokens: Counter[int] = Counter()
        reports: Counter[int] = Counter()
        for seq, task, count, merged in rows:
            if self._accepted.get(task) != seq:
                self.counts.double_applied += 1
                raise Broken(f"task {task} has the accepted reports {self._accepted.get(task)} and {seq}")
            if merged is not None:
                tokens[merged] += count
                reports[merged] += 1
                if self._merged.setdefault(seq, merged) != merged:
                    self.counts.double_applied += 1
                    raise Broken(f"report {seq} was merged in {self._merged[seq]} and in {merged}")
        gone = set(self._accepted.values()) - {row[0] for row in rows}
        unmerged = {seq for seq, _, _, merged in rows if merged is None} & set(self._merged)
        if gone or unmerged:
            self.counts.acknowledged_lost += len(gone | unmerged)
            raise Broken(f"reports vanished: {sorted(gone)[:5]}, left their version: {sorted(unmerged)[:5]}")
        total, totals = 0, {0: 0}
        for version, made, said, running, restores in db.execute(
            "SELECT version, reports, tokens, tokens_total, restores FROM versions ORDER BY version"
        ):
            total = said + (total if restores is None else totals[restores])
            totals[version] = total
            if (reports[version], tokens[version], total) != (made, said, running):
                raise Broken(
                    f"version {version} says {made} reports with {said} tokens, {running} in all; the ledger "
                    f"has {reports[version]} with {tokens[version]}, {total} in all"
                )

    def _given_up(self, db: sqlite3.Connection) -> None:
        """A report is discarded with its task, and only by a rollback to before its version or base."""
        for seq, state, lost in db.execute(
            "SELECT r.seq, t.state, v.version IS NULL FROM reports r JOIN tasks t ON t.id = r.task_id "
            "LEFT JOIN versions v ON v.version = r.discarded_in "
            "AND v.restores < coalesce(r.merged_in, r.base_version) "
            "WHERE r.verdict = 'accepted' AND (r.discarded_in IS NOT NULL OR t.state = 'discarded')"
        ):
            if lost or state != TaskState.DISCARDED:
                self.counts.acknowledged_lost += 1
                raise Broken(f"report {seq} of a task that is {state} was given up without a rollback")

    def _leases(self, db: sqlite3.Connection) -> None:
        many = db.execute(
            "SELECT worker, count(*) FROM leases WHERE state = 'open' GROUP BY worker HAVING count(*) > 1"
        ).fetchall()
        if many:
            raise Broken(f"more than one open lease: {many}")
        self.deadlines()
        defects = db.execute("SELECT count(*) FROM leases WHERE reason = 'internal_error'").fetchone()[0]
        if defects:
            raise Broken(f"{defects} tasks failed by a defect of the worker")
        stray = db.execute(
            "SELECT count(*) FROM tasks WHERE state = 'leased' AND id NOT IN "
            "(SELECT task_id FROM leases WHERE state = 'open')"
        ).fetchone()[0]
        if stray:
            raise Broken(f"{stray} tasks are leased to nobody")

    def deadlines(self) -> None:
        """No lease was taken before its deadline; to be asked before a late report hides it."""
        if not self._house.up:
            return
        early = self._open().execute(
            "SELECT id, deadline, ended_at FROM leases WHERE state = 'expired' AND ended_at < deadline - ?",
            (_ROUNDING,),
        )
        if found := early.fetchall():
            raise Broken(f"leases were taken before their deadline: {found[:3]}")

    def _told(self, db: sqlite3.Connection) -> None:
        """What was acknowledged to a worker stands in the ledger, word for word."""
        rows = {
            (worker, task, fence): verdict
            for worker, task, fence, verdict in db.execute(
                "SELECT worker, task_id, fence, verdict FROM reports"
            )
        }
        lost = [key for key, receipt in self._receipts.items() if rows.get(key) != receipt.verdict]
        if lost:
            self.counts.acknowledged_lost += len(lost)
            raise Broken(f"acknowledged and not in the ledger: {lost[:3]}")

    # -- when all is quiet ----------------------------------------------------------------------------

    def final(self) -> None:
        """Nothing is under way any more: every accepted update is in exactly one version."""
        self.audit()
        db = self._open()
        waiting = db.execute(
            "SELECT count(*) FROM reports WHERE verdict = 'accepted' AND merged_in IS NULL "
            "AND discarded_in IS NULL"
        ).fetchone()[0]
        if waiting:
            self.counts.acknowledged_lost += waiting
            raise Broken(f"{waiting} accepted updates are in no version although all is quiet")
        open_leases = db.execute("SELECT count(*) FROM leases WHERE state = 'open'").fetchone()[0]
        if open_leases:
            raise Broken(f"{open_leases} leases are open although all is quiet")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._generation != self._house.generation:
            self.close()
            self._connection = sqlite3.connect(
                f"file:{Path(self._file).as_posix()}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            self._generation, self._seen = self._house.generation, -1
        return self._connection
