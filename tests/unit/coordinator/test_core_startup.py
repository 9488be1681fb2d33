"""What a coordinator refuses to start with: it never makes new weights by itself (Q3)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bithaul.coordinator.database import ledger, runs, versions
from bithaul.coordinator.services.runner import ServiceRunner
from bithaul.coordinator.services.startup import check_run
from bithaul.errors import Conflict, CorruptFile, InvalidConfig, LayoutMismatch, NotFound, UnknownName
from bithaul.exchange.weights import weights_pieces
from bithaul.model.config import ModelConfig
from bithaul.model.init import initial_vector
from bithaul.model.layout import layout_of

House = Any


def newest_file(house: House) -> Path:
    return Path(house.c.blobs.get(house.newest.sha256).path)


def two_versions(house: House) -> None:
    house.report("ann", house.claim("ann"))
    house.clock.time += 30
    assert house.merge() is not None


def test_a_good_run_starts_and_leftovers_are_cleared(house: House) -> None:
    two_versions(house)
    part = house.c.settings.incoming_folder / "left.part"
    part.write_bytes(b"x")
    os.utime(part, (1, 1))
    check_run(house.c)
    assert not part.exists()


def test_no_run_is_fine(make_house: Callable[..., House]) -> None:
    check_run(make_house().c)


@pytest.mark.parametrize("spoil", ["flip", "truncate", "delete", "sidecar"])
def test_damaged_weights_stop_the_start(house: House, spoil: str) -> None:
    """Catches a silent new model at version 1."""
    two_versions(house)
    path = newest_file(house)
    data = bytearray(path.read_bytes())
    if spoil == "flip":
        data[500] ^= 1
        path.write_bytes(data)
    elif spoil == "truncate":
        path.write_bytes(data[:-4])
    elif spoil == "delete":
        path.unlink()
    else:
        path.with_name(path.name + ".sha256").unlink()
    with pytest.raises(CorruptFile, match=r"ersion 2.*backup"):
        check_run(house.c)
    assert house.newest.version == 2


def test_a_damaged_update_stops_the_start(house: House) -> None:
    """Catches an acknowledged update that is dropped because its file is bad."""
    task = house.claim("ann")
    house.report("ann", task)
    with house.c.database.read() as connection:
        report = ledger.unmerged(connection, house.run.id)[0]
    path = house.c.blobs.get(report.blob_sha256).path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFile, match="damaged"):
        check_run(house.c)
    house.clock.time += 30
    with pytest.raises(CorruptFile):
        house.merge()


def test_damage_of_the_base_is_seen_by_the_merge(house: House) -> None:
    house.report("ann", house.claim("ann"))
    path = newest_file(house)
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    house.clock.time += 30
    with pytest.raises(CorruptFile, match="SHA-256"):
        house.merge()
    assert house.newest.version == 1


def test_weights_of_another_model_stop_the_start(house: House) -> None:
    other = ModelConfig(
        vocab_size=16, hidden_size=8, intermediate_size=32, num_layers=1, num_heads=2, context_length=16
    )
    blob = house.c.blobs.put(weights_pieces(1, initial_vector(other, seed=0)), name="other")
    with house.c.database.write() as connection:
        versions.update_version(connection, house.run.id, 1, sha256=blob.sha256, size=blob.size)
    with pytest.raises(LayoutMismatch, match="do not fit"):
        check_run(house.c)


def test_a_config_that_changed_under_the_run_stops_the_start(house: House) -> None:
    changed = house.run.model.model_dump(mode="json") | {"intermediate_size": 32}
    with house.c.database.write() as connection:
        runs.update_run(connection, house.run.id, model=changed)
    with pytest.raises(LayoutMismatch, match="start it with the version that made it"):
        check_run(house.c)


def test_only_one_coordinator_serves_a_folder(house: House) -> None:
    """Catches two leaders that merge the same updates."""
    first, second = ServiceRunner(house.c, []), ServiceRunner(house.c, [])
    first.start()
    with pytest.raises(Conflict, match="Another coordinator"):
        second.start()
    assert first.stop()
    second.start()
    assert second.stop()


def test_a_second_run_is_refused(house: House) -> None:
    with pytest.raises(Conflict, match="already holds the run 'test'"):
        house.create(run="second")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"merge_rule": "median"}, UnknownName, "sync, staleness_sgd"),
        ({"codec": "zip"}, UnknownName, "int8-block-v1"),
        ({"budget_tokens": None}, InvalidConfig, "budget"),
        ({"budget_tokens": -1.0}, InvalidConfig, "budget_tokens"),
        ({"task_seconds": 0.0}, InvalidConfig, "task_seconds"),
        ({"corpus_dir": Path("nowhere")}, NotFound, "manifest"),
    ],
)
def test_a_run_that_cannot_work_is_not_made(
    make_house: Callable[..., House], changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    house = make_house()
    with pytest.raises(error, match=words):
        house.create(**changes)
    with house.c.database.read() as connection:
        assert runs.find_run(connection) is None


def test_a_model_for_another_vocabulary_is_refused(make_house: Callable[..., House]) -> None:
    house = make_house()
    model = ModelConfig(
        vocab_size=99, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, context_length=16
    )
    with pytest.raises(InvalidConfig, match=r"99.*16"):
        house.create(model=model)


def test_a_corrupted_shard_is_not_imported(make_house: Callable[..., House]) -> None:
    house = make_house()
    path = house.corpus / "train-00001.bin"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"x")
    with pytest.raises(CorruptFile, match=r"train-00001\.bin"):
        house.create()
    path.write_bytes(good)
    path.with_suffix(".idx").unlink()
    with pytest.raises(NotFound, match=r"train-00001\.idx"):
        house.create()


def test_the_first_weights_are_the_models(house: House) -> None:
    """Catches zeros, and another seed than the run's."""
    assert np.array_equal(house.theta(1), initial_vector(house.run.model, seed=3))
    assert house.run.layout_hash == layout_of(house.run.model).hash
