"""Crashes at every named point: nothing twice, nothing acknowledged lost, the same weights to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.context import CrashPoints
from bithaul.coordinator.database import runs, versions, work
from bithaul.coordinator.database.tables import reports, tasks
from bithaul.coordinator.services.retention import retain
from bithaul.coordinator.services.startup import check_run
from bithaul.coordinator.services.sweeper import sweep
from bithaul.exchange.messages import HeartbeatRequest, Receipt, Verdict
from bithaul.rounds.leases import TaskState
from bithaul.simulation.disk import ForgetfulDisk, is_database

House = Any
ROUNDS = 5
WORKERS = ("ann", "bob")
NAMES = [name for name in CrashPoints.NAMES if not name.startswith("score.")]  # in test_core_scores
OPTIONS = {"merge_options": {"eta": 0.7, "mu": 0.5}, "codec": "int8-block-v1"}


class Script:
    """Two workers with outboxes and one that dies with a lease. Every step may be repeated after a crash."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.outbox: dict[str, tuple[Any, bytes]] = {}
        self.receipts: dict[tuple[int, str], Receipt] = {}
        self.lost_lease = False
        self.swept = False

    def run(self) -> None:
        while self.house.newest.version <= ROUNDS:
            self.one_round()

    def one_round(self) -> None:
        house = self.house
        if house.newest.version == 3:
            roll_back(house.c, 2)
        if not self.lost_lease:
            house.register("cat")
            house.claim("cat")
            self.lost_lease = True
        if not self.swept:
            house.clock.time += 10_000
            sweep(house.c)
            self.swept = True
        for worker in WORKERS:
            if worker not in self.outbox:
                task = house.try_claim(worker).task
                if task is not None:
                    self.outbox[worker] = (task, house.frame(task, update=self.update(task)))
        for worker in list(self.outbox):
            task, data = self.outbox[worker]
            receipt = house.send(worker, task, data)
            old = self.receipts.setdefault((task.task, task.fence), receipt)
            assert receipt == old, "a receipt never changes"
            del self.outbox[worker]
        while house.merge() is not None:
            pass
        retain(house.c)

    def update(self, task: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Depends only on the examples of the task, as a worker's would."""
        seed = [r.first * 7 + r.count for r in task.ranges]
        return np.random.default_rng(seed).standard_normal(self.house.run.layout.size) * 1e-2


def start(make_house: Callable[..., House], weights: str = "fp32") -> Script:
    house = make_house(settings={"retention_keep": 2, "payload_keep_versions": 1})
    house.create(**OPTIONS, weights=weights)
    house.register(*WORKERS)
    return Script(house)


def check(script: Script) -> None:
    """The invariants of exchange.md, section 13, as far as they concern the ledger."""
    house = script.house
    with house.c.database.read() as connection:
        run = runs.get_run(connection)
        free = work.read_free(connection, run)
        found = work.list_tasks(connection, run.id)
        rows = versions.list_versions(connection, run.id)
        ledger = connection.execute(select(reports)).mappings().all()
    places = Counter(p for s in free.returned for p in range(s.start, s.end))
    held = [t for t in found if t.state is not TaskState.DISCARDED]
    places.update(p for t in held for s in t.positions for p in range(s.start, s.end))
    assert places == Counter(range(run.position_cursor)), "each position is at exactly one place"
    accepted = [r for r in ledger if r["verdict"] == Verdict.ACCEPTED]
    assert len({r["task_id"] for r in accepted}) == len(accepted)
    assert all(r["merged_in"] is not None for r in accepted), "when all is quiet, everything is merged"
    given_up = {r["merged_in"] for r in accepted if r["discarded_in"] is not None}
    assert given_up == {3}, "the rollback gave up what version 3 had merged, and nothing else"
    assert [r.lineage for r in rows] == [1, 1, 1, *[2] * (len(rows) - 3)]
    told = {key for key, receipt in script.receipts.items() if receipt.verdict is Verdict.ACCEPTED}
    assert told == {(r["task_id"], r["fence"]) for r in accepted}, "none acknowledged was lost, none appeared"
    assert [r.version for r in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        if row.retired_at is None:
            house.c.blobs.verify(row.sha256)
        for sha256 in row.snapshot:
            house.c.blobs.verify(sha256)
        assert row.tokens == sum(r["tokens"] for r in accepted if r["merged_in"] == row.version)
    assert list(house.c.settings.incoming_folder.glob("*.part")) == []


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def undisturbed(request: pytest.FixtureRequest, make_module_house: Callable[..., House]) -> Script:
    script = start(make_module_house, request.param)
    script.run()
    check(script)
    missing = set(NAMES) - set(script.house.seen)
    assert not missing, f"the scenario never passes {missing}: extend it"
    return script


ONCE = ("sweep.half", *(name for name in NAMES if name.startswith("rollback.")))
CRASHES = [(name, n) for name in NAMES for n in (1, 3) if n == 1 or name not in ONCE]


@pytest.mark.parametrize(("name", "occurrence"), CRASHES)
def test_a_crash_changes_nothing(
    make_house: Callable[..., House], undisturbed: Script, name: str, occurrence: int
) -> None:
    """Neither theta nor what is published, whichever way it is published. Unsynced files go."""
    script = start(make_house, undisturbed.house.run.weights)
    house = script.house
    house.crash_at, house.crash_count = name, occurrence
    disk = ForgetfulDisk(house.directory, apart=is_database)
    with disk.watching(), pytest.raises(BaseException, match=f"^{name}$"):
        script.run()
    house.crash_at = None
    house.c.close()
    disk.cut()
    house.open()
    check_run(house.c)
    house.register(*WORKERS)
    script.run()
    check(script)
    newest = undisturbed.house.newest
    assert np.array_equal(house.theta(), undisturbed.house.theta())
    assert (house.newest.sha256, house.newest.theta_sha256) == (newest.sha256, newest.theta_sha256)


def test_an_unknown_crash_point_is_a_defect() -> None:
    """Catches a point that is in the code but in no test."""
    with pytest.raises(ValueError, match=r"flush\.nowhere"):
        CrashPoints().hit("flush.nowhere")


def test_orphan_blobs_of_a_crash_are_cleared_at_start(make_house: Callable[..., House]) -> None:
    """Catches a disk that fills up with half-made versions."""
    script = start(make_house)
    house = script.house
    house.crash_at = "flush.snapshot_written"
    with pytest.raises(BaseException, match="snapshot_written"):
        script.run()
    before = {sha for sha, _ in house.c.blobs.stored()}
    house.crash_at = None
    house.reopen()
    house.clock.time = 4e9  # files carry the machine's time
    check_run(house.c)
    after = {sha for sha, _ in house.c.blobs.stored()}
    assert len(before) - len(after) == 2, "weights and momentum of the version that was never announced"


def test_the_database_refuses_two_accepted_reports(make_house: Callable[..., House]) -> None:
    """The last line of defence, under the code: a partial unique index."""
    from sqlalchemy import insert
    from sqlalchemy.exc import IntegrityError

    script = start(make_house)
    script.run()
    with script.house.c.database.read() as connection:
        row = dict(connection.execute(select(reports).limit(1)).mappings().one())
        task = connection.execute(select(tasks.c.id).limit(1)).scalar_one()
    assert task
    del row["seq"]
    with pytest.raises(IntegrityError), script.house.c.database.write() as connection:
        connection.execute(insert(reports).values(**row))


def test_a_heartbeat_after_the_crash_finds_its_lease(make_house: Callable[..., House]) -> None:
    """Catches leases that live only in memory."""
    script = start(make_house)
    house = script.house
    task = house.claim("ann")
    house.reopen()
    beat = HeartbeatRequest(task=task.task, fence=task.fence, tokens=10, activity="training")
    assert heartbeat(house.c, "ann", beat).lease_open
    assert house.claim("ann").fence == task.fence
