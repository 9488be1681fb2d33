"""Reports that must not count: each refusal has its code, changes no weights, and is final."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bithaul.coordinator.commands.begin_upload import begin_upload
from bithaul.coordinator.database import fleet, runs, work
from bithaul.errors import BithaulError, Conflict, Gone, InvalidInput, OutOfDisk, TooLarge
from bithaul.exchange.messages import Verdict
from bithaul.rounds.leases import TaskState

House = Any
BATCH = 4  # examples of an inner step, as the house of these tests has it
TOKENS_PER_EXAMPLE = 7


def test_a_report_may_say_all_that_its_slice_holds(house: House) -> None:
    """Catches a limit that honest work exceeds."""
    task = house.claim("ann")
    assert house.run.batch_examples == BATCH
    assert task.examples == 100
    receipt = house.report("ann", task, tokens=100 * TOKENS_PER_EXAMPLE, steps=100 // BATCH)
    assert receipt.verdict is Verdict.ACCEPTED
    rest = house.claim("bob")
    receipt = house.report("bob", rest, examples=9, tokens=9 * TOKENS_PER_EXAMPLE, steps=3)
    assert receipt.verdict is Verdict.ACCEPTED


def state_of(house: House, task: int) -> TaskState:
    with house.c.database.read() as connection:
        return work.get_task(connection, task).state


def refusals() -> list[Any]:
    """(name, code, changes of a good frame)."""
    return [
        pytest.param("foreign_task", {"task": 999}, id="foreign-task"),
        pytest.param("foreign_task", {"fence": "f" * 32}, id="foreign-fence"),
        pytest.param("foreign_run", {"run": "other"}, id="foreign-run"),
        pytest.param("layout_mismatch", {"layout_hash": "a" * 64}, id="layout"),
        pytest.param("codec", {"codec": "int8-ef-v1"}, id="codec"),
        pytest.param("foreign_base", {"base_version": 7}, id="base"),
        pytest.param("wrong_length", {"payload": b"BGF4"}, id="length"),
        pytest.param("frame_sha256", {"payload_sha256": "0" * 64}, id="sha256"),
        pytest.param("counts", {"examples": 101}, id="more-examples-than-the-slice"),
        pytest.param("counts", {"examples": 0}, id="no-examples"),
        pytest.param("counts", {"tokens": 10**9}, id="tokens"),
        pytest.param("counts", {"tokens": 100 * TOKENS_PER_EXAMPLE + 1}, id="one-token-more-than-they-have"),
        pytest.param("counts", {"steps": 10**6}, id="steps"),
        pytest.param("counts", {"steps": 100 // BATCH + 1}, id="one-step-more-than-they-make"),
        pytest.param("counts", {"examples": 9, "tokens": 64, "steps": 1}, id="tokens-of-more-than-it-used"),
    ]


@pytest.mark.parametrize(("code", "changes"), refusals())
def test_a_bad_report_is_rejected_and_the_task_goes_back(
    house: House, code: str, changes: dict[str, Any]
) -> None:
    """Catches a gate that is missing, and an update applied before it is judged (Q1)."""
    task = house.claim("ann")
    frame = house.frame(task, **changes)
    if code == "foreign_base":
        with pytest.raises(Conflict, match="newest here is 1"):
            house.send("ann", task, frame)
        return
    receipt = house.send("ann", task, frame)
    assert (receipt.verdict, receipt.code) == (Verdict.REJECTED, code)
    assert receipt.reason
    assert house.send("ann", task, house.frame(task)) == receipt, "a receipt never changes"
    assert state_of(house, task.task) is TaskState.PENDING
    house.clock.time += 60
    assert house.merge() is None
    assert house.newest.version == 1
    assert list(house.c.settings.incoming_folder.glob("*.part")) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected(house: House, bad: float) -> None:
    """Catches one NaN that would poison every weight."""
    task = house.claim("ann")
    payload = bytearray(8 + 8 * house.run.layout.size)
    payload[:8] = b"BGF4" + house.run.layout.size.to_bytes(4, "little")
    values = np.frombuffer(payload, "<f4", house.run.layout.size, 8)
    values[123] = bad
    receipt = house.report("ann", task, payload=bytes(payload))
    assert (receipt.verdict, receipt.code) == (Verdict.REJECTED, "non_finite")


def test_a_nan_scale_is_rejected(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create(codec="int8-ef-v1")
    house.register("ann")
    task = house.claim("ann")
    size = house.run.layout.size
    payload = b"BGEF" + size.to_bytes(4, "little") + np.float32(np.nan).tobytes() + bytes(size)
    assert house.report("ann", task, payload=payload).code == "non_finite"


def test_a_norm_above_the_ceiling_is_rejected(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create(max_update_norm=1.0)
    house.register("ann")
    task = house.claim("ann")
    huge = np.full(house.run.layout.size, 1.0)
    assert house.report("ann", task, update=huge).code == "norm"


def test_garbage_is_rejected_not_a_crash(house: House) -> None:
    for code, data in [
        ("frame_short", b""),
        ("frame_magic", b"x" * 4000),
        ("frame_header", b"BHUF\1\0\5\0\0\0{...."),
    ]:
        task = house.claim("ann")
        receipt = house.send("ann", task, data)
        assert (receipt.verdict, receipt.code) == (Verdict.REJECTED, code)
        house.clock.time += 4000


def test_only_the_holder_of_a_lease_may_report(house: House) -> None:
    """Catches another worker's, an invented and a swapped lease (Q1)."""
    task, other = house.claim("ann"), house.claim("bob")
    for worker, number, fence in [
        ("bob", task.task, task.fence),
        ("ann", task.task, "0" * 32),
        ("ann", task.task, other.fence),
        ("ann", 12345, task.fence),
    ]:
        with pytest.raises(Conflict) as caught:
            begin_upload(house.c, worker, task=number, fence=fence, content_length=20_000)
        assert caught.value.error_code == "unknown_fence"
    with pytest.raises(Conflict, match="no lease"):
        house.send("bob", task, house.frame(task))
    with pytest.raises(Gone):
        house.send("stranger", task, house.frame(task))


def test_the_length_is_judged_before_the_body(house: House) -> None:
    """Catches reading gigabytes before saying no."""
    task = house.claim("ann")

    def begin(length: int) -> Any:
        return begin_upload(house.c, "ann", task=task.task, fence=task.fence, content_length=length)

    payload = 8 + 8 * house.run.layout.size
    assert begin(len(house.frame(task))) is None
    with pytest.raises(TooLarge):
        begin(payload + 100_000)
    with pytest.raises(InvalidInput, match="payload alone"):
        begin(payload - 1)
    receipt = house.report("ann", task)
    assert begin(10**12) == receipt, "a stored receipt is answered whatever is asked"


def test_a_nearly_full_disk_refuses_the_upload(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create()
    house.register("ann")
    task = house.claim("ann")
    house.settings["disk_reserve_bytes"] = 2**60
    house.c.close()
    from bithaul.coordinator.context import open_coordinator
    from bithaul.coordinator.settings import load_settings

    house.c = open_coordinator(load_settings(house.directory, disk_reserve_bytes=2**60), clock=house.clock)
    with pytest.raises(OutOfDisk):
        begin_upload(house.c, "ann", task=task.task, fence=task.fence, content_length=20_000)


def test_the_first_valid_report_wins(house: House) -> None:
    """Catches a slice that counts twice when its lease expired and was leased again."""
    task = house.claim("ann")
    from bithaul.coordinator.services.sweeper import sweep

    house.clock.time += task.deadline_seconds + 1
    sweep(house.c)
    again = house.claim("bob")
    assert again.task == task.task
    assert again.fence != task.fence
    assert house.report("ann", task).verdict is Verdict.ACCEPTED, "late, but first"
    late = house.report("bob", again)
    assert (late.verdict, late.code) == (Verdict.TOO_LATE, "too_late")
    assert house.send("bob", again, house.frame(again)) == late


def test_too_old_a_base_is_stale_and_the_slice_goes_back(make_house: Callable[..., House]) -> None:
    """Catches merging what was trained long ago, and positions lost with it."""
    house = make_house()
    house.create(merge_options={"max_staleness": 1})
    house.register("ann", "bob")
    old = house.claim("ann")
    for _ in range(2):
        house.report("bob", house.claim("bob"))
        house.clock.time += 30
        assert house.merge() is not None
    receipt = house.report("ann", old)
    assert (receipt.verdict, receipt.code, receipt.staleness) == (Verdict.STALE, "stale", 2)
    assert state_of(house, old.task) is TaskState.PENDING
    assert house.claim("ann").task == old.task


def test_a_late_report_joins_the_next_round_with_less_weight(house: House) -> None:
    old = house.claim("ann")
    house.report("bob", house.claim("bob"))
    house.clock.time += 30
    assert house.merge() is not None
    new = house.claim("bob")
    assert new.base_version == 2
    size = house.run.layout.size
    assert house.report("ann", old, update=np.full(size, 1.0)).staleness == 1
    house.report("bob", new, update=np.full(size, 0.0))
    before = house.theta()
    house.clock.time += 30
    made = house.merge()
    assert made is not None
    weights = np.array([old.examples * 2**-0.5, new.examples])
    expected = before.astype(np.float64) - weights[0] / weights.sum()
    assert np.allclose(house.theta(), expected, atol=1e-6)


def test_a_base_from_the_future_is_a_conflict(house: House) -> None:
    """A coordinator restored from a backup meets workers that know more."""
    task = house.claim("ann")
    with house.c.database.write() as connection:
        lease = work.find_lease(connection, "ann", task=task.task, fence=task.fence)
        assert lease is not None
        work.update_lease(connection, lease, base_version=5)
    with pytest.raises(Conflict) as caught:
        house.report("ann", task)
    assert caught.value.error_code == "base_from_future"


def test_unused_examples_go_back(house: House) -> None:
    """Catches a soft stop that skips the rest of its slice for ever."""
    task = house.claim("ann")
    house.report("ann", task, examples=40, seconds=4.0)
    with house.c.database.read() as connection:
        run = runs.get_run(connection)
        free = work.read_free(connection, run)
    assert [(s.start, s.count) for s in free.returned] == [(40, task.examples - 40)]
    following = house.claim("bob")
    assert following.examples == task.examples
    with house.c.database.read() as connection:
        assert work.get_task(connection, following.task).positions[0].start == 40


def test_a_worker_that_keeps_failing_rests(house: House) -> None:
    """Catches a wrongly set-up worker that empties the queue (Q9)."""
    for _ in range(2):
        task = house.claim("ann")
        house.send("ann", task, b"nonsense")
    refused = house.try_claim("ann")
    assert refused.task is None
    assert refused.retry_after > 1
    house.clock.time += 31
    house.report("ann", house.claim("ann"))
    with house.c.database.read() as connection:
        assert fleet.get_worker(connection, "ann").failures == 0


def test_a_task_that_three_workers_fail_is_given_up(house: House) -> None:
    task = house.claim("ann")
    house.send("ann", task, b"nonsense")
    house.register("cat")
    for worker in ("bob", "cat"):
        again = house.claim(worker)
        assert again.task == task.task
        house.send(worker, again, b"nonsense")
    assert state_of(house, task.task) is TaskState.FAILED


def test_errors_are_sentences(house: House) -> None:
    with pytest.raises(BithaulError) as caught:
        house.try_claim("stranger")
    assert caught.value.message.endswith(".")
