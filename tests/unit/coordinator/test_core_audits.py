"""The gate `audit`: another worker repeats merged tasks, and nothing of that counts twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.commands.standing import pin_worker, set_aside_worker
from bithaul.coordinator.commands.steer import drain_worker
from bithaul.coordinator.database import fleet, ledger, repetitions, runs, versions, work
from bithaul.coordinator.database.tables import reports, tasks
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.queries.workerpage import worker_page
from bithaul.coordinator.services.retention import retain
from bithaul.coordinator.services.sweeper import sweep
from bithaul.exchange.messages import HeartbeatRequest, Receipt, RunState, TaskMessage, Verdict
from bithaul.rounds.leases import LeaseState
from bithaul.rounds.trust import Standing

House = Any
ENGINES = "both"
NAMES = ("ann", "bob", "cat")


def audited_run(make_house: Callable[..., House], *names: str, **changes: Any) -> House:
    house = make_house()
    house.create(**{"gates": ["audit"], "codec": "int8-block-v1", **changes})
    house.register(*(names or NAMES), audits=True)
    return house


def work_of(house: House, task: TaskMessage, *, wrong: bool = False) -> np.ndarray[Any, Any]:
    """What honest training gives: it depends on the base, the examples and the seed only."""
    seed = [task.base_version, task.seed % 2**32, task.examples, int(wrong)]
    return np.random.default_rng(seed).standard_normal(house.run.layout.size) * 1e-3


def deliver(house: House, name: str, task: TaskMessage, *, wrong: bool = False) -> Receipt:
    return house.report(name, task, update=work_of(house, task, wrong=wrong))


def is_repetition(house: House, name: str, task: TaskMessage) -> bool:
    with house.c.database.read() as connection:
        lease = work.find_lease(connection, name, task=task.task, fence=task.fence)
    assert lease is not None
    return lease.repeats is not None


def one_round(house: House, *, wrong: tuple[str, ...] = (), names: tuple[str, ...] = NAMES) -> list[Any]:
    """Each does what it is given, repetitions first; then there is a version. (name, task, receipt) of
    repetitions."""
    made = []
    for name in names:
        task = house.try_claim(name).task
        while task is not None and is_repetition(house, name, task):
            made.append((name, task, deliver(house, name, task, wrong=name in wrong)))
            task = house.try_claim(name).task
        if task is not None:
            assert deliver(house, name, task, wrong=name in wrong).verdict is Verdict.ACCEPTED
    house.clock.time += 20.0
    assert house.merge() is not None
    return made


def counted(house: House) -> tuple[Any, ...]:
    """All that may not move when a task is repeated."""
    with house.c.database.read() as connection:
        run = runs.get_run(connection)
        spent = runs.spent(connection, run.id)
        free = work.read_free(connection, run)
        rows = connection.execute(select(tasks.c.id, tasks.c.state, tasks.c.positions).order_by(tasks.c.id))
        accepted = connection.execute(
            select(reports.c.seq, reports.c.merged_in).where(reports.c.verdict == "accepted")
        )
        newest = versions.newest_version(connection, run.id)
        return (
            (spent.merged, spent.accepted, spent.leased, work.leased_tokens(connection, run.id)),
            (free, newest.sha256, newest.tokens_total),
            [tuple(row) for row in rows],
            [tuple(row) for row in accepted],
        )


def row_of(house: House, name: str) -> fleet.WorkerRow:
    with house.c.database.read() as connection:
        return fleet.get_worker(connection, name)


@pytest.fixture
def waiting(make_house: Callable[..., House]) -> House:
    """Every worker is new, so every task of the first version is to be repeated."""
    house = audited_run(make_house)
    assert one_round(house) == []
    return house


def test_a_repetition_is_the_same_task_and_counts_nothing_twice(waiting: House) -> None:
    """Catches tokens in the budget, a slice given back, a version that waits, an update that is merged."""
    house, before = waiting, counted(waiting)
    with house.c.database.read() as connection:
        (first, *_) = repetitions.waiting(connection, house.run.id)
    task = house.claim("cat")
    assert is_repetition(house, "cat", task)
    assert (task.task, task.base_version, task.examples, task.audit) == (
        first.task_id,
        first.base_version,
        first.examples,
        True,
    )
    assert counted(house) == before
    assert house.claim("cat") == task, "asking twice gives the same"
    receipt = deliver(house, "cat", task)
    assert (receipt.verdict, receipt.code, receipt.clip) == (Verdict.COMPARED, "repeated", 1.0)
    assert "came out as the first run did (likeness 1.000)" in receipt.reason
    assert counted(house) == before
    assert deliver(house, "cat", task) == receipt, "a repeated POST has the same answer"
    with house.c.database.read() as connection:
        row = ledger.find_report(connection, "cat", task=task.task, fence=task.fence)
        (outcome,) = repetitions.newest(connection, house.run.id, first.worker)
    assert row is not None
    assert (row.credited, row.blob_sha256, row.weight) == (row.tokens, None, 0.0)
    assert (outcome.by, round(outcome.likeness, 6)) == ("cat", 1.0)
    assert house.merge() is None
    page = worker_page(house.c, "cat")
    assert (page.machine.compared, page.machine.repeated_by_it) == (1, 1)
    assert worker_page(house.c, first.worker).machine.repeated == 1
    assert one_round(house), "the others are repeated too, and the run goes on"


def test_the_repetition_learns_at_the_rates_of_the_part_that_was_used(
    make_house: Callable[..., House],
) -> None:
    """Catches a schedule that runs to the end of the slice over the examples that were used."""
    house = audited_run(make_house, "ann", "bob")
    task = house.claim("ann")
    half = task.examples // 8 * 4
    house.report("ann", task, examples=half, update=work_of(house, task))
    deliver(house, "bob", house.claim("bob"))
    house.clock.time += 20.0
    house.merge()
    again = house.claim("bob")
    assert again.task == task.task
    assert (again.examples, again.seed, again.progress_start) == (half, task.seed, task.progress_start)
    share = half / task.examples
    assert again.progress_end == pytest.approx(
        task.progress_start + share * (task.progress_end - task.progress_start)
    )
    assert sum(part.count for part in again.ranges) == half


def test_who_comes_out_differently_twice_has_a_strike_and_all_can_read_why(
    make_house: Callable[..., House],
) -> None:
    """Catches a strike at once, none at all, and one for the honest worker that repeated it."""
    house = audited_run(make_house)
    seen = []
    for _ in range(6):
        one_round(house, wrong=("cat",))
        seen.append(row_of(house, "cat").trust_score)
    assert row_of(house, "cat").trust_score < 1.0
    assert seen[1] == 1.0, "one comparison does not say who is wrong"
    for name in ("ann", "bob"):
        assert row_of(house, name).trust_score == 1.0, read_audit(house.c, limit=50)
        assert row_of(house, name).standing == Standing.STEADY
    assert "came out differently, twice in a row: by " in row_of(house, "cat").trust_reason
    log = read_audit(house.c, limit=100)
    (struck, *_) = [r for r in log if r.action == "worker.strike"]
    assert (struck.actor, struck.subject) == ("system", "cat")
    differed = [r for r in log if r.action == "worker.differed" and r.subject == "cat"]
    assert len(differed) >= 2
    assert len({r.detail.split(" repeated by ")[1].split(",")[0] for r in differed[-2:]}) == 2
    machine = worker_page(house.c, "cat").machine
    assert machine.differed == len(differed)


def test_a_pinned_worker_keeps_its_weight(make_house: Callable[..., House]) -> None:
    house = audited_run(make_house)
    pin_worker(house.c, "cat")
    for _ in range(5):
        one_round(house, wrong=("cat",))
    assert row_of(house, "cat").trust.weight(house.clock.now()) == 1.0
    assert not [r for r in read_audit(house.c, limit=100) if r.action == "worker.strike"]


def test_honest_workers_are_asked_less_and_less(make_house: Callable[..., House]) -> None:
    """Catches a rate that stays at one, and a streak that never grows."""
    house = audited_run(make_house)
    made = [len(one_round(house)) for _ in range(30)]
    assert row_of(house, "ann").streak == 30
    assert sum(made[:5]) > sum(made[-5:])
    assert sum(made) < 30, made
    assert row_of(house, "ann").trust_score == 1.0


def test_an_expired_repetition_goes_to_another_and_its_late_report_is_heard(waiting: House) -> None:
    """Catches a task that is queued again, one that fails, and a second comparison of one update."""
    house, before = waiting, counted(waiting)
    task = house.claim("cat")
    house.clock.time += 10_000.0
    sweep(house.c)
    assert counted(house) == before
    other = house.claim("bob" if task_worker(house, task) == "ann" else "ann")
    assert (other.task, other.fence != task.fence) == (task.task, True)
    name = "bob" if task_worker(house, task) == "ann" else "ann"
    assert deliver(house, "cat", task).verdict is Verdict.COMPARED, "it is late, and the first"
    late = deliver(house, name, other)
    assert (late.verdict, late.code) == (Verdict.TOO_LATE, "too_late")
    assert counted(house) == before
    assert house.claim("cat").task != task.task


def task_worker(house: House, task: TaskMessage) -> str:
    """Who did it first."""
    with house.c.database.read() as connection:
        row = ledger.accepted_report(connection, task.task)
    assert row is not None
    return row.worker


def test_nobody_is_given_a_repetition_twice_and_it_is_given_up_in_the_end(waiting: House) -> None:
    house = waiting
    task = house.claim("cat")
    heartbeat(
        house.c,
        "cat",
        HeartbeatRequest(task=task.task, fence=task.fence, outcome="failed", code="out_of_memory"),
    )
    again = house.claim("cat")
    assert again.task != task.task


def test_a_part_of_the_task_says_nothing(waiting: House) -> None:
    """Catches a slow machine's unfinished repetition that counts against an honest worker."""
    house = waiting
    task = house.claim("cat")
    receipt = house.report("cat", task, examples=4, update=-work_of(house, task))
    assert (receipt.verdict, receipt.code) == (Verdict.COMPARED, "repeated")
    assert "could not be compared" in receipt.reason
    with house.c.database.read() as connection:
        assert repetitions.newest(connection, house.run.id, task_worker(house, task)) == []
    other = next(n for n in ("ann", "bob") if n != task_worker(house, task))
    assert house.claim(other).task == task.task, "somebody else is asked"


def test_the_gates_judge_a_repetition_too(waiting: House) -> None:
    task = waiting.claim("cat")
    payload = bytearray(waiting.frame(task, update=work_of(waiting, task)))
    payload[-1] ^= 1
    receipt = waiting.send("cat", task, bytes(payload))
    assert receipt.verdict is Verdict.REJECTED
    assert waiting.claim("cat").task != task.task


def test_an_older_worker_is_neither_flagged_nor_asked(make_house: Callable[..., House]) -> None:
    """Catches a field that its software refuses."""
    house = audited_run(make_house, "ann", "bob")
    house.register("old")
    for _ in range(4):
        for name in ("ann", "bob", "old"):
            task = house.try_claim(name).task
            while task is not None and is_repetition(house, name, task):
                assert name != "old"
                assert task_worker(house, task) != "old"
                deliver(house, name, task)
                task = house.try_claim(name).task
            assert task is not None
            if name == "old":
                assert '"audit"' not in task.model_dump_json()
            deliver(house, name, task)
        house.clock.time += 20.0
        house.merge()


def test_a_downgraded_worker_gives_a_flagged_task_back(waiting: House) -> None:
    task = waiting.claim("cat")
    waiting.register("cat")
    other = waiting.claim("cat")
    assert (other.task != task.task, other.audit) == (True, False)


def test_alone_nobody_is_flagged(make_house: Callable[..., House]) -> None:
    """Catches fresh moments for nothing."""
    house = audited_run(make_house, "ann")
    assert not house.claim("ann").audit


def test_without_the_gate_nothing_is_drawn(make_house: Callable[..., House]) -> None:
    house = audited_run(make_house, gates=[])
    for _ in range(3):
        assert one_round(house) == []


def test_a_run_ends_although_a_repetition_is_under_way(make_house: Callable[..., House]) -> None:
    """Catches an audit that holds up the end, and a worker that trains on after it."""
    house = audited_run(make_house, budget_tokens=4 * 3 * 700.0)
    one_round(house)
    held = house.claim("cat")
    assert is_repetition(house, "cat", held)
    for _ in range(40):
        if house.run.state is RunState.FINISHED:
            break
        for name in ("ann", "bob"):
            task = house.try_claim(name).task
            while task is not None and is_repetition(house, name, task):
                deliver(house, name, task)
                task = house.try_claim(name).task
            if task is not None:
                deliver(house, name, task)
        house.clock.time += 20.0
        house.merge()
        house.merge()
    assert house.run.state is RunState.FINISHED
    told = heartbeat(house.c, "cat", HeartbeatRequest(task=held.task, fence=held.fence, tokens=7))
    assert not told.lease_open
    before = counted(house)
    assert deliver(house, "cat", held).verdict is Verdict.COMPARED
    assert counted(house) == before
    assert house.try_claim("cat").task is None


def test_a_round_waits_for_nobody_who_repeats(waiting: House) -> None:
    """Catches a barrier that counts the repeating worker among those awaited."""
    house = waiting
    assert is_repetition(house, "cat", house.claim("cat"))
    for name in ("ann", "bob"):
        task = house.claim(name)
        while is_repetition(house, name, task):
            deliver(house, name, task)
            task = house.claim(name)
        deliver(house, name, task)
    assert house.merge() is not None, "at once"


def test_a_rollback_ends_repetitions_of_what_it_gives_up(waiting: House) -> None:
    house = waiting
    task = house.claim("cat")
    one_round(house, names=("ann", "bob"))
    roll_back(house.c, 1)
    receipt = deliver(house, "cat", task)
    assert (receipt.verdict, receipt.code) == (Verdict.STALE, "rolled_back")
    with house.c.database.read() as connection:
        assert repetitions.waiting(connection, house.run.id) == []


def test_what_waits_to_be_repeated_is_kept_with_its_base(make_house: Callable[..., House]) -> None:
    """Catches a comparison that finds no file, and files that are kept for ever."""
    house = audited_run(make_house)
    house.c.settings.__dict__.update(payload_keep_versions=0, retention_keep=2)
    one_round(house)
    held = house.claim("cat")
    for _ in range(5):
        one_round(house, names=("ann", "bob"))
        retain(house.c)
    with house.c.database.read() as connection:
        base = versions.find_version(connection, house.run.id, held.base_version)
    assert base is not None
    assert base.retired_at is None
    assert "likeness 1.000" in deliver(house, "cat", held).reason
    for _ in range(3):
        one_round(house)
        retain(house.c)
    with house.c.database.read() as connection:
        base = versions.find_version(connection, house.run.id, held.base_version)
        kept = ledger.blobs_in_use(connection)
    assert base is not None
    assert base.retired_at is not None
    assert len(kept) <= 3 + 8


@pytest.mark.parametrize("point", ["claim.decided", "claim.committed", "submit.gated", "submit.committed"])
def test_a_crash_leaves_the_repetition_as_it_was_or_done(waiting: House, point: str) -> None:
    """Catches half a comparison, and one that is made twice."""
    house, before = waiting, counted(waiting)
    task = None if point.startswith("claim") else house.claim("cat")
    house.crash_at, house.crash_count = point, 1
    step = partial(house.claim, "cat") if task is None else partial(deliver, house, "cat", task)
    with pytest.raises(BaseException, match=point):
        step()
    house.crash_at = None
    house.reopen()
    assert counted(house) == before
    task = task or house.claim("cat")
    receipt = deliver(house, "cat", task)
    assert "likeness 1.000" in receipt.reason
    with house.c.database.read() as connection:
        worker = task_worker(house, task)
        assert len(repetitions.newest(connection, house.run.id, worker)) == 1
    assert counted(house) == before


def test_the_word_of_a_worker_without_weight_says_nothing(waiting: House) -> None:
    house = waiting
    task = house.claim("cat")
    set_aside_worker(house.c, "cat")
    receipt = deliver(house, "cat", task, wrong=True)
    assert receipt.verdict is Verdict.COMPARED
    with house.c.database.read() as connection:
        assert repetitions.newest(connection, house.run.id, task_worker(house, task)) == []


def test_a_drained_worker_gives_a_repetition_back(waiting: House) -> None:
    task = waiting.claim("cat")
    drain_worker(waiting.c, "cat", on=True)
    assert waiting.try_claim("cat").task is None
    with waiting.c.database.read() as connection:
        lease = work.find_lease(connection, "cat", task=task.task, fence=task.fence)
    assert lease is not None
    assert lease.state is LeaseState.RELEASED
