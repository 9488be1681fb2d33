"""What the coordinator says is on the disk before: the order of syncs and commits, and a power cut after."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bithaul.coordinator.blobs.local import LocalBlobStore
from bithaul.coordinator.blobs.uploads import UploadInfo
from bithaul.coordinator.commands.claim_task import claim_task
from bithaul.coordinator.commands.heartbeat import heartbeat
from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.commands.steer import pause_run
from bithaul.coordinator.commands.submit_gradient import submit_gradient
from bithaul.coordinator.context import CrashPoints
from bithaul.coordinator.services.startup import check_run
from bithaul.exchange.messages import HeartbeatRequest, Verdict

sys.path.insert(0, str(Path(__file__).parents[2] / "disks"))
from disk_record import DiskRecord, needs_posix

pytestmark = needs_posix
House = Any
UNNEEDED = ("incoming", "uploads")  # what was not acknowledged may go
KEPT = [
    "sync /blobs/ab/SHA.sha256.new",
    "move /blobs/ab/SHA.sha256.new -> /blobs/ab/SHA.sha256",
    "move /incoming/N.part -> /blobs/ab/SHA",
    "sync /blobs/ab/",
]
FULL = "commit synchronous=2"
PUT = ["sync /incoming/N.part", *KEPT]


@contextmanager
def recorded(house: House) -> Iterator[DiskRecord]:
    """With a line for the end of each transaction that tells something, and for the beginning of a merge."""
    record = DiskRecord(house.directory, unneeded=UNNEEDED)
    wanted = {"submit.recorded", "flush.chosen", "flush.recorded", "rollback.recorded"}
    points = CrashPoints(lambda name: record.note(name) if name in wanted else None)
    object.__setattr__(house.c, "crash_points", points)
    with record.watching(house.c.database.writer_engine):
        yield record


def without_new_folders(lines: list[str]) -> list[str]:
    """Whether one of the 256 folders is there already is chance."""
    return [line for line in lines if line != "sync /blobs/"]


def blobs_of(house: House) -> list[str]:
    """Of the newest version."""
    row = house.newest
    return [sha for sha in (row.sha256, row.theta_sha256, row.momentum_sha256, row.delta_sha256) if sha]


def test_an_update_and_its_receipt_are_on_the_disk_before_the_answer(house: House) -> None:
    """Catches an acknowledged update whose bytes, name or row a power cut takes."""
    task = house.claim("ann")
    data = house.frame(task)
    with recorded(house) as record:
        receipt = house.send("ann", task, data)
        record.note(f"receipt: {receipt.verdict}")
    assert without_new_folders(record.lines) == [
        *PUT,
        "submit.recorded",
        FULL,
        f"receipt: {Verdict.ACCEPTED}",
    ]
    record.disk.cut()
    house.reopen()
    check_run(house.c)
    assert house.send("ann", task, data) == receipt
    stored = [house.c.blobs.verify(sha256).path for sha256, _ in house.c.blobs.stored()]
    assert data in [path.read_bytes() for path in stored]


def test_a_resumable_update_is_synced_before_it_is_judged(house: House) -> None:
    """Catches an update that came in pieces, was acknowledged, and is empty after a power cut.

    A piece itself is not synced when its offset is told: after a power cut the worker asks for the offset,
    and what it sends on from there has the SHA-256 that was announced, or the upload begins again.
    """
    task = house.claim("ann")
    data = house.frame(task)
    info = UploadInfo(worker="ann", task=task.task, fence=task.fence, length=len(data), created=0.0)
    with recorded(house) as record:
        upload = house.c.uploads.create("a" * 32, info)
        half = len(data) // 2
        for offset, piece in ((0, data[:half]), (half, data[half:])):
            with house.c.uploads.writer(upload.id, worker="ann", offset=offset) as writer:
                writer.write(piece)
        with house.c.uploads.taking(upload.id, worker="ann") as whole:
            assert whole.size == len(data)
            record.note("judged")
            lease = {"task": task.task, "fence": task.fence}
            receipt = submit_gradient(house.c, "ann", **lease, upload=whole)
            record.note(f"receipt: {receipt.verdict}")
    taken = f"/uploads/{'a' * 32}.upload"
    assert without_new_folders(record.lines) == [
        f"sync {taken}",
        "judged",
        *(line.replace("/incoming/N.part", taken) for line in KEPT),
        "submit.recorded",
        FULL,
        f"receipt: {Verdict.ACCEPTED}",
    ]


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int4-delta"])
def test_a_version_is_on_the_disk_before_it_is_announced(
    make_house: Callable[..., House], weights: str
) -> None:
    """Catches a version whose weights, theta, momentum or delta a power cut takes."""
    house = make_house()
    house.create(merge_options={"eta": 0.7, "mu": 0.5}, codec="int8-block-v1", weights=weights)
    house.register("ann", "bob")
    for name in ("ann", "bob"):
        house.report(name, house.claim(name))
    house.clock.time += 10.0
    with recorded(house) as record:
        row = house.merge()
        record.note("announced")
    assert row is not None
    files = len(set(blobs_of(house)))
    assert files == {"fp32": 2, "bf16": 3, "int4-delta": 4}[weights]
    lines = without_new_folders(record.lines)
    made = lines[lines.index("flush.chosen") + 1 :]
    assert made == [*PUT * files, "flush.recorded", FULL, "announced"]
    record.disk.cut()
    house.reopen()
    check_run(house.c)
    for sha256 in blobs_of(house):
        house.c.blobs.verify(sha256)
    assert house.newest.version == row.version


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_restored_version_is_on_the_disk_before_it_is_announced(
    make_house: Callable[..., House], weights: str
) -> None:
    """Catches a rollback to weights that a power cut takes."""
    house = make_house()
    house.create(merge_options={"eta": 0.7, "mu": 0.5}, weights=weights)
    house.register("ann", "bob")
    house.train(3)
    restored = house.theta(2)
    with recorded(house) as record:
        back = roll_back(house.c, 2)
        record.note("announced")
    files = {"fp32": 2, "bf16": 3}[weights]
    made = without_new_folders(record.lines)
    assert made == [*PUT * files, "rollback.recorded", FULL, "announced"]
    record.disk.cut()
    house.reopen()
    check_run(house.c)
    for sha256 in blobs_of(house):
        house.c.blobs.verify(sha256)
    assert np.array_equal(house.theta(back.version), restored)


def test_the_folder_of_a_first_blob_lasts_with_it(house: House) -> None:
    """Catches a blob whose bytes, name and row are synced, in a folder whose own name is not."""
    with recorded(house) as record:
        seen = [house.c.blobs.put([bytes([number])], name=house.ids.nonce()) for number in range(40)]
    assert len({blob.path.parent for blob in seen}) > 30
    assert record.disk.lost() == []


def test_a_new_store_s_own_folder_lasts(tmp_path: Path) -> None:
    """Catches a new run whose blobs are synced in a folder that is not."""
    record = DiskRecord(tmp_path, unneeded=UNNEEDED)
    with record.watching():
        store = LocalBlobStore(tmp_path / "blobs", incoming=tmp_path / "incoming")
        store.put([b"first"], name="n1")
    assert record.disk.lost() == []


def test_only_what_repeats_itself_is_not_waited_for(house: House) -> None:
    """A lease or a heartbeat that a power cut takes is asked for again; catches a record that says
    `synchronous=2` whatever the database does."""
    with recorded(house) as record:
        task = claim_task(house.c, "ann").task
        assert task is not None
        beat = HeartbeatRequest(task=task.task, fence=task.fence, tokens=1, activity="training")
        heartbeat(house.c, "ann", beat)
    assert record.lines == ["commit synchronous=1"] * 2


def test_the_first_commit_of_a_new_process_is_waited_for_too(house: House) -> None:
    """Catches a connection that waits for the disk only after it has once been told not to."""
    house.reopen()
    with recorded(house) as record:
        pause_run(house.c)
    assert record.lines == [FULL]
