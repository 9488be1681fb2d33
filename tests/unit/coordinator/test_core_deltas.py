"""A run that publishes deltas: what tasks offer, what stays on disk, what rollbacks and crashes do."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.database import versions
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.queries.blobs import delta_blob, weights_blob
from bithaul.coordinator.services.retention import blobs_wanted, retain
from bithaul.coordinator.services.startup import check_run
from bithaul.errors import CorruptFile, NotFound
from bithaul.exchange.bf16 import from_bf16, to_bf16
from bithaul.exchange.deltas import apply_delta, delta_size
from bithaul.exchange.messages import TaskMessage
from bithaul.exchange.weights import weights_size

House = Any


@pytest.fixture
def published(make_house: Callable[..., House]) -> House:
    """A run that publishes int4 deltas, with momentum; `ann` and `bob` work in it."""
    house = make_house(settings={"retention_keep": 50})
    house.create(weights="int4-delta", merge_options={"mu": 0.5, "eta": 0.7})
    house.register("ann", "bob")
    return house


def one_round(house: House, *, size: float = 1e-3, seconds: float = 10.0) -> VersionRow:
    for name in ("ann", "bob"):
        task = house.claim(name)
        seed = [task.base_version, task.ranges[0].first]
        update = np.random.default_rng(seed).standard_normal(house.run.layout.size) * size
        house.report(name, task, update=update)
    house.clock.time += seconds
    row = house.merge()
    assert row is not None
    return row


def rows(house: House) -> list[VersionRow]:
    with house.c.database.read() as connection:
        return list(versions.list_versions(connection, house.run.id))


def walk(house: House, task: TaskMessage, held: bytes, folder: Path) -> bytes:
    """The task's weights from a file and the deltas the task names, as a worker would."""
    for delta in task.weights_deltas:
        assert delta.base_sha256 == hashlib.sha256(held).hexdigest()
        blob = delta_blob(house.c, delta.version)
        assert (blob.sha256, blob.size) == (delta.sha256, delta.size)
        (folder / "base").write_bytes(held)
        out = io.BytesIO()
        form, layout = house.run.weight_format, house.run.layout
        apply_delta(folder / "base", blob.path, out, base_sha256=delta.base_sha256, layout=layout, form=form)
        held = out.getvalue()
    assert hashlib.sha256(held).hexdigest() == task.weights_sha256
    return held


def test_a_task_offers_what_is_fewer_bytes_than_all(published: House, tmp_path: Path) -> None:
    """Catches a way that is longer than the file, one that ends elsewhere, and one in the wrong order."""
    assert published.claim("ann").weights_deltas == []
    for _ in range(5):
        one_round(published)
    task = published.claim("ann")
    assert [delta.version for delta in task.weights_deltas] == [4, 5, 6]
    assert sum(delta.size for delta in task.weights_deltas) < task.weights_size
    held = weights_blob(published.c, 3).path.read_bytes()
    assert walk(published, task, held, tmp_path) == weights_blob(published.c, 6).path.read_bytes()
    count = published.run.layout.size
    assert task.weights_size == weights_size(0) + 2 * count


def test_what_is_published_follows_theta(published: House) -> None:
    """Catches a chain that goes on from what it published instead of from theta, and errors that add up."""
    for _ in range(6):
        before = published.published(published.newest.version)
        row = one_round(published)
        theta = published.theta(row.version)
        way = np.abs(theta - before).max()
        error = np.abs(published.published(row.version) - theta)
        assert error.max() <= way / 14 * 1.01 + np.abs(theta).max() * 2.0**-8
        assert not np.array_equal(published.published(row.version), from_bf16(to_bf16(theta)))
    check_run(published.c)


def test_deltas_that_no_task_can_name_go(published: House) -> None:
    """Catches a disk that fills up, one that a task of today names, and one that a backup misses."""
    for _ in range(7):
        one_round(published)
    retain(published.c)
    assert [r.version for r in rows(published) if r.delta_sha256] == [5, 6, 7, 8]
    size = delta_size(published.run.layout, published.run.weight_format)
    stored = [published.c.blobs.get(sha256).size for sha256, _ in published.c.blobs.stored()]
    assert stored.count(size) == 4
    task = published.claim("ann")
    assert [delta.version for delta in task.weights_deltas] == [6, 7, 8]
    with published.c.database.read() as connection:
        wanted = blobs_wanted(connection)
    assert {delta.sha256 for delta in task.weights_deltas} <= wanted
    with pytest.raises(NotFound) as caught:
        delta_blob(published.c, 4)
    assert caught.value.error_code == "no_delta"
    with pytest.raises(NotFound) as caught:
        delta_blob(published.c, 99)
    assert caught.value.error_code == "unknown_version"


def test_a_lease_keeps_the_delta_to_its_base(published: House) -> None:
    """Catches a worker that comes back to its lease and is sent to a delta that is gone."""
    published.register("old", speed=1.0)
    task = None
    for _ in range(8):
        row = one_round(published, seconds=60.0)  # nobody waits so long for `old`
        if row.version == 3:
            task = published.claim("old")
    assert task is not None
    retain(published.c)
    with_delta = [r.version for r in rows(published) if r.delta_sha256]
    assert with_delta == [3, 6, 7, 8, 9]


def test_a_rollback_begins_a_new_chain(published: House, tmp_path: Path) -> None:
    """Catches a delta that leads from a version nobody may use, and one that is offered across the cut."""
    for _ in range(4):
        one_round(published)
    theta = published.theta(4)
    assert roll_back(published.c, 4).version == 6
    assert rows(published)[-1].delta_sha256 is None
    assert published.claim("ann").weights_deltas == []
    assert np.array_equal(published.published(6), from_bf16(to_bf16(theta)))
    one_round(published)
    task = published.claim("bob")
    assert [delta.version for delta in task.weights_deltas] == [7]
    walk(published, task, weights_blob(published.c, 6).path.read_bytes(), tmp_path)
    check_run(published.c)


@pytest.mark.parametrize("point", ["flush.blob_half", "flush.blob_written", "flush.recorded"])
def test_a_flush_that_was_cut_off_is_repeated_to_the_bit(
    make_house: Callable[..., House], point: str
) -> None:
    """Catches a delta that depends on what the dead process left behind."""
    files = []
    for crash in (None, point):
        house = make_house()
        house.create(weights="int8-delta")
        house.register("ann", "bob")
        one_round(house)
        for name in ("ann", "bob"):
            house.report(name, house.claim(name))
        house.clock.time += 10.0
        house.crash_at, house.crash_count = crash, 1
        if crash is not None:
            with pytest.raises(BaseException, match=point):
                house.merge()
            house.reopen()
            check_run(house.c)
        row = house.merge()
        assert row is not None
        files.append((row.sha256, row.delta_sha256, row.theta_sha256))
    assert files[0] == files[1]


def test_a_damaged_published_file_stops_the_merge(published: House) -> None:
    """Catches a version whose delta leads from bytes that no worker has."""
    one_round(published)
    for name in ("ann", "bob"):
        published.report(name, published.claim(name))
    path = weights_blob(published.c, 2).path
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    published.clock.time += 10.0
    with pytest.raises(CorruptFile, match="damaged"):
        published.merge()
    assert published.newest.version == 2


def test_runs_without_deltas_have_none(house: House) -> None:
    """Catches a third file beside each version of a usual run."""
    one_round(house)
    assert house.newest.delta_sha256 is None
    assert house.claim("ann").weights_deltas == []
    with pytest.raises(NotFound):
        delta_blob(house.c, 2)
    with house.c.database.read() as connection:
        assert connection.execute(text("SELECT count(delta_sha256) FROM versions")).scalar() == 0
