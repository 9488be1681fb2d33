"""A run that publishes bf16: what workers get, what the coordinator keeps, what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from bithaul.coordinator.commands.publish_model import publish_model
from bithaul.coordinator.commands.register_worker import register_worker
from bithaul.coordinator.commands.roll_back import roll_back
from bithaul.coordinator.database import runs, versions
from bithaul.coordinator.database.migrate import downgrade, upgrade
from bithaul.coordinator.queries.blobs import current_version, weights_blob
from bithaul.coordinator.services.retention import retain
from bithaul.coordinator.services.startup import check_run
from bithaul.errors import CorruptFile, UnknownName
from bithaul.exchange.bf16 import from_bf16, to_bf16
from bithaul.exchange.messages import RegisterRequest
from bithaul.exchange.weights import open_weights, weights_size
from bithaul.model.checkpoint import load_checkpoint
from bithaul.model.init import initial_vector

House = Any
Vector = np.ndarray[Any, np.dtype[np.float32]]


def rounded(vector: Vector) -> Vector:
    return from_bf16(to_bf16(vector))


@pytest.fixture
def published(make_house: Callable[..., House]) -> House:
    """A run that publishes bf16, with momentum; `ann` and `bob` work in it."""
    house = make_house(settings={"retention_keep": 50})
    house.create(weights="bf16", merge_options={"mu": 0.5, "eta": 0.7})
    house.register("ann", "bob")
    return house


def one_round(house: House, size: float = 1e-3) -> None:
    for name in ("ann", "bob"):
        task = house.claim(name)
        seed = [task.base_version, task.ranges[0].first]
        update = np.random.default_rng(seed).standard_normal(house.run.layout.size) * size
        house.report(name, task, update=update)
    house.clock.time += 10.0
    assert house.merge() is not None


def test_workers_get_theta_rounded_in_half_the_bytes(published: House) -> None:
    """Catches a version that is not its theta rounded, and an announcement of the other file."""
    one_round(published)
    one_round(published)
    count = published.run.layout.size
    assert np.array_equal(published.theta(1), initial_vector(published.run.model, seed=3))
    for version in (1, 2, 3):
        theta = published.theta(version)
        assert not np.array_equal(theta, rounded(theta)), "theta has bits that bfloat16 has not"
        assert np.array_equal(published.published(version), rounded(theta))
    task, current, row = published.claim("ann"), current_version(published.c), published.newest
    told = {(task.weights_sha256, task.weights_size), (current.sha256, current.size)}
    assert told == {(row.sha256, row.size)}
    assert row.size == weights_size(0) + 2 * count == weights_blob(published.c, 3).path.stat().st_size
    check_run(published.c)


def test_steps_too_small_to_be_published_add_up(make_house: Callable[..., House]) -> None:
    """Catches a coordinator that goes on from what it published: every such step would be lost."""
    house = make_house()
    house.create(weights="bf16")  # rate 1, no momentum
    house.register("ann")
    first = house.published(1)
    step = np.abs(first).astype(np.float64) * 2**-11  # a sixteenth to an eighth of the way to a neighbour
    moved = []
    for version in range(2, 22):
        house.report("ann", house.claim("ann"), update=-step)
        house.clock.time += 10.0
        assert house.merge() is not None
        moved.append((house.published(version) != first)[first != 0].mean())
    assert moved[0] < 0.2, "one step shows in few values"
    assert moved[-1] == 1.0, "twenty show in all"


def test_an_old_worker_is_refused_with_a_sentence(published: House) -> None:
    """Catches a worker that gets a lease and then a file that it cannot read."""
    request = RegisterRequest(codecs=["fp32-v1"], weight_formats=["weights-v1"])
    with pytest.raises(
        UnknownName, match=r"weights-bf16-v1, this worker knows weights-v1; update the worker"
    ):
        register_worker(published.c, "old", request)
    newer = request.model_copy(update={"weight_formats": ["weights-v1", "weights-bf16-v1"]})
    assert register_worker(published.c, "new", newer).run.weight_format == "weights-bf16-v1"


def test_a_rollback_takes_theta_if_it_is_kept_else_what_was_published(published: House) -> None:
    """Catches a theta that is lost although it is there, and one of another version."""
    for _ in range(4):
        one_round(published)
    retain(published.c)
    theta, old = published.theta(4), published.published(2)
    with published.c.database.read() as connection:
        rows = versions.list_versions(connection, published.run.id)
    assert [r.version for r in rows if r.theta_sha256] == [4, 5], "snapshots of the newest two are kept"
    assert [r.version for r in rows if r.momentum_sha256] == [4, 5]
    assert roll_back(published.c, 4).version == 6
    assert np.array_equal(published.theta(6), theta)
    assert np.array_equal(published.published(6), rounded(theta))
    assert published.newest.momentum_sha256 is not None
    assert roll_back(published.c, 2).version == 7
    assert np.array_equal(published.theta(7), old)
    assert np.array_equal(published.published(7), old)
    assert published.newest.momentum_sha256 is None
    check_run(published.c)
    one_round(published)
    assert np.array_equal(published.published(8), rounded(published.theta(8)))


def test_old_thetas_go_and_their_versions_stay(published: House) -> None:
    """Catches a disk that fills up with what no step needs, and a download that is deleted with it."""
    for _ in range(5):
        one_round(published)
    retain(published.c)
    lengths = [published.c.blobs.get(sha256).size for sha256, _ in published.c.blobs.stored()]
    count = published.run.layout.size
    assert lengths.count(weights_size(count)) == 2 + 2, "theta and momentum of two versions"
    assert lengths.count(weights_size(0) + 2 * count) == 6


@pytest.mark.parametrize("spoil", ["flip", "delete"])
def test_a_damaged_theta_stops_the_start_and_the_merge(published: House, spoil: str) -> None:
    """The published file alone is not the run: a theta made from it would be another one."""
    one_round(published)
    path = published.c.blobs.get(published.newest.theta_sha256).path
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    if spoil == "flip":
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(CorruptFile, match="damaged"):
        check_run(published.c)


def test_the_exported_model_is_the_published_one(published: House) -> None:
    """Every number that judges a version is taken on what workers got."""
    one_round(published)
    folder = published.directory / "model"
    publish_model(published.c, corpus=published.directory, folder=folder)
    exported = load_checkpoint(folder / "model.safetensors").vector
    assert np.array_equal(exported, published.published(2))
    assert not np.array_equal(exported, published.theta(2))


def test_a_run_without_a_choice_publishes_theta_itself(house: House) -> None:
    """Catches a second copy of the weights on disk."""
    for name in ("ann", "bob"):
        house.report(name, house.claim(name))
    house.clock.time += 10.0
    assert house.merge() is not None
    assert (house.run.weights, house.newest.theta_sha256) == ("fp32", house.newest.sha256)
    vector = open_weights(weights_blob(house.c, 2).path, expected_count=house.run.layout.size).vector
    assert np.array_equal(vector, house.theta(2))


def test_a_run_from_before_goes_on_as_fp32(house: House) -> None:
    """Catches a migration that leaves the newest version without what the next step starts from."""
    house.report("ann", house.claim("ann"))
    house.clock.time += 30.0
    assert house.merge() is not None
    engine, folder = house.c.database.writer_engine, house.directory
    downgrade(engine, lock_folder=folder, revision="0005")
    with house.c.database.write() as connection:
        connection.execute(text("UPDATE versions SET retired_at = 1 WHERE version = 1"))
    upgrade(engine, lock_folder=folder)
    with house.c.database.read() as connection:
        rows = versions.list_versions(connection, runs.get_run(connection).id)
    assert [r.theta_sha256 for r in rows] == [None, rows[1].sha256]
    assert house.run.weights == "fp32"
    check_run(house.c)
    house.report("ann", house.claim("ann"))
    house.clock.time += 30.0
    assert house.merge() is not None


def test_an_unknown_choice_makes_no_run(make_house: Callable[..., House]) -> None:
    house = make_house()
    with pytest.raises(UnknownName, match="fp32 or bf16"):
        house.create(weights="fp8")
    house.create()
