"""A coordinator in trouble: it tells its operator why, tries again ever later, and publishes whole models."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bithaul.coordinator.commands.publish_model import publish_model
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.progress import progress
from bithaul.coordinator.services.runner import LONGEST_PAUSE, Service, ServiceRunner, pause
from bithaul.errors import CorruptFile

House = Any


def broken(_c: Coordinator) -> str:
    raise CorruptFile("The weights are damaged; restore them.")


def test_a_failure_names_service_and_reason_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a log of nothing but "service failed"."""
    with caplog.at_level(logging.WARNING):
        ServiceRunner(house.c, []).run_once(Service("merger", 0.2, broken))
    assert caplog.messages == ["service merger failed: The weights are damaged; restore them."]


def test_a_failing_service_is_tried_ever_later() -> None:
    """Catches the same failure several times a second, and a service that is given up."""
    assert [pause(0.2, n) for n in range(4)] == [0.2, 0.4, 0.8, 1.6]
    assert pause(0.2, 10_000) == LONGEST_PAUSE
    assert pause(3600.0, 5) == 3600.0


def test_a_wake_up_does_not_hurry_a_failing_service(house: House) -> None:
    tries: list[float] = []

    def work(c: Coordinator) -> str:
        tries.append(0.0)
        c.events.merge.set()
        return broken(c)

    runner = ServiceRunner(house.c, [Service("merger", 0.2, work, wake=house.c.events.merge)])
    runner.start()
    threading.Event().wait(0.3)
    assert runner.stop()
    assert len(tries) <= 2


def test_progress_names_what_keeps_the_run_from_going_on(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.create()
    assert progress(house.c).problems == []
    runner = ServiceRunner(house.c, [])
    failed = runner.run_once(Service("merger", 1, broken))
    assert progress(house.c).problems == ["merger: The weights are damaged; restore them."]
    runner.run_once(Service("merger", 1, lambda _: "fine"), before=failed)
    assert progress(house.c).problems == []
    house.settings["disk_reserve_bytes"] = 2**60
    house.reopen()
    (problem,) = progress(house.c).problems
    assert "uploads are refused" in problem


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mine").write_text("old")
    return folder


def test_a_model_that_cannot_be_replaced_stays(
    house: House, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an old model that is deleted before the new one has its name."""
    renamed = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "model.new":
            raise PermissionError("somebody reads it")
        return renamed(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PermissionError):
        publish_model(house.c, corpus=house.directory, folder=model)
    assert (model / "mine").read_text() == "old"
    monkeypatch.undo()
    publish_model(house.c, corpus=house.directory, folder=model)
    assert [p.name for p in model.iterdir()] == ["model.safetensors"]
    assert [p.name for p in model.parent.iterdir() if p.name.startswith("model")] == ["model"]


def test_damaged_weights_are_not_published_and_named(house: House, model: Path) -> None:
    path = house.c.blobs.get(house.newest.sha256).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match="restore it from a backup") as caught:
        publish_model(house.c, corpus=house.directory, folder=model)
    assert str(path) in str(caught.value)
    assert (model / "mine").read_text() == "old"
