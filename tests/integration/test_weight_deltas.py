"""Weights by deltas over real HTTP: what a worker fetches for each version, and that it has the very file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bithaul.coordinator.database import versions
from bithaul.exchange.deltas import delta_size
from bithaul.exchange.weights import INT4_DELTA, INT8_DELTA, WeightFormat, weights_size
from bithaul.training.calibrate import Calibration
from bithaul.worker import tools as tools_module
from bithaul.worker.transfers import Transfers

RUN = {"codec": "fp32-v1", "budget_tokens": 6000.0, "task_seconds": 20.0, "probe_every": 0}


@pytest.fixture(autouse=True)
def _several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 500 tokens at first, however fast this machine is."""
    measured = Calibration(tokens_per_second=25.0, spread=0.0, path="", reason="", memory_bytes=1)
    monkeypatch.setattr(tools_module, "calibrate", lambda *_, **__: measured)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(address, bytes) of every file of weights that a worker of this process has asked for."""
    found: list[tuple[str, int]] = []
    right = Transfers._continue

    def note(self: Transfers, path: str, part: Path, *, sha256: str, size: int) -> None:
        right(self, path, part, sha256=sha256, size=size)
        if path.startswith("/weights/"):
            found.append((path, size))

    monkeypatch.setattr(Transfers, "_continue", note)
    return found


def row(room: Any, version: int) -> versions.VersionRow:
    with room.c.database.read() as connection:
        found = versions.find_version(connection, room.run.id, version)
    assert found is not None
    return found


@pytest.mark.parametrize("form", [INT8_DELTA, INT4_DELTA], ids=lambda form: form.choice)
def test_every_version_after_the_first_costs_a_delta(
    room: Any, fetched: list[tuple[str, int]], form: WeightFormat
) -> None:
    """Catches a worker that trains from other bytes than the coordinator published, and whole downloads."""
    room.make_run(weights=form.choice, **RUN)
    with room.serve():
        room.work()
    layout, last = room.run.layout, room.version
    assert last > 3
    assert fetched[0] == ("/weights/1", weights_size(layout.size, form))
    bases = [path for path, _ in fetched[1:]]
    assert bases == [f"/weights/{version}/delta" for version in range(2, len(bases) + 2)]
    assert {size for _, size in fetched[1:]} == {delta_size(layout, form)}
    held = {path.read_bytes() for path in (room.directory / "workers/w1").rglob("*.bgwt")}
    assert room.weights_file(len(bases) + 1).read_bytes() in held
    assert room.logged("delta not usable, fetching the whole version") == []
    step = np.abs(room.own_theta(last) - room.theta(last)).max()
    assert 0 < step < 0.02, "published is near theta, and is not it"


def test_a_delta_that_is_gone_costs_the_whole_file(room: Any, fetched: list[tuple[str, int]]) -> None:
    """Catches a run that ends at a file which no step needs."""
    room.make_run(weights="int8-delta", **RUN)
    broken = room.c.blobs.get
    gone: list[str] = []

    def get(sha256: str) -> Any:
        ref = broken(sha256)
        if ref.size == delta_size(room.run.layout, INT8_DELTA) and not gone:
            gone.append(sha256)
            ref.path.unlink()
        return ref

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(room.c.blobs), "get", lambda self, sha256: get(sha256))
        with room.serve():
            room.work()
    assert len(gone) == 1
    whole = [path for path, _ in fetched if not path.endswith("/delta")]
    assert len(whole) == 2
    assert len(room.logged("delta not usable, fetching the whole version")) == 1
    assert room.version > 3


def test_the_route_answers_as_that_of_weights(room: Any) -> None:
    """Names, ranges, caching; catches a delta that anybody may have and one served for another version."""
    room.make_run(weights="int8-delta", **RUN)
    with room.serve():
        room.work()
        version = room.version
        with room.http("w1") as http:
            whole = http.get(f"/weights/{version}/delta")
            assert hashlib.sha256(whole.content).hexdigest() == row(room, version).delta_sha256
            assert whole.headers["etag"] == f'"{row(room, version).delta_sha256}"'
            assert "immutable" in whole.headers["cache-control"]
            part = http.get(f"/weights/{version}/delta", headers={"Range": "bytes=100-"})
            assert (part.status_code, part.content) == (206, whole.content[100:])
            head = http.head(f"/weights/{version}/delta")
            assert head.headers["content-length"] == str(len(whole.content))
            for number, code in ((1, "no_delta"), (99, "unknown_version")):
                answer = http.get(f"/weights/{number}/delta")
                assert (answer.status_code, answer.json()["code"]) == (404, code)
            del http.headers["Authorization"]
            assert http.get(f"/weights/{version}/delta").status_code == 401
