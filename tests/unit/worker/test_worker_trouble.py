"""What a worker says when it cannot work, and when it ends: failures aloud, nothing broken on the wire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from bithaul.errors import LayoutMismatch, Unauthorized, UnknownName
from bithaul.exchange.messages import LeaseOutcome
from bithaul.training.trainer import Trainer


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (ValueError("a defect"), "internal_error"),
        (RuntimeError("mat1 and mat2"), "internal_error"),
    ],
)
def test_failure_is_said_aloud(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    """Catches a worker that dies, or keeps silent so that the lease must expire."""
    patience(monkeypatch)
    bench.fake.tasks = 1
    worker = bench.worker(tmp_path)
    original = Trainer.train
    calls = []

    def train(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:  # the first is calibration
            raise error
        return original(self, *args, **options)

    monkeypatch.setattr(Trainer, "train", train)
    worker.run()
    outcomes = [(b.outcome, b.code, b.task) for b in bench.fake.beats if b.outcome]
    assert outcomes == [(LeaseOutcome.FAILED, code, 1)]


def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest after a failure."""
    from bithaul.worker import loop

    monkeypatch.setattr(loop, "_LONGEST_REST", 0.0)


def a_bit_of_a_shard_flips(fake: Any) -> None:
    path = fake.folder / "train-00000.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def the_weights_are_one_value_short(fake: Any) -> None:
    fake.theta = fake.theta[:-1]
    fake.announce()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (a_bit_of_a_shard_flips, "shard_unavailable"),
        (the_weights_are_one_value_short, "layout_mismatch"),
    ],
)
def test_damaged_files_are_reported_not_trained_on(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None], code: str
) -> None:
    patience(monkeypatch)
    bench.fake.tasks = 1
    spoil(bench.fake)
    bench.worker(tmp_path).run()
    assert [b.code for b in bench.fake.beats if b.outcome] == [code]


def test_pruned_weights_release_the_lease(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(monkeypatch)
    bench.fake.tasks = 1
    gone = {"title": "t", "status": 404, "detail": "Pruned.", "code": "not_found"}
    bench.fake.faults["weights"] = [lambda request: httpx2.Response(404, json=gone)]
    bench.worker(tmp_path).run()
    assert [b.outcome for b in bench.fake.beats if b.outcome] == [LeaseOutcome.RELEASED]


def test_diverged_training_is_reported_not_sent(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches NaN on the wire."""
    patience(monkeypatch)
    bench.fake.tasks = 1
    bench.fake.codec = "int8-block-v1"
    monkeypatch.setattr(Trainer, "vector", lambda self: np.full(bench.fake.layout.size, np.nan, np.float32))
    bench.worker(tmp_path).run()
    assert [b.code for b in bench.fake.beats if b.outcome] == ["loss_not_finite"]
    assert bench.fake.bodies == []


def test_another_layout_ends_the_worker(bench: Any, tmp_path: Path) -> None:
    bench.fake.layout = type(bench.fake.layout)(bench.fake.layout.tensors[:-1])
    with pytest.raises(LayoutMismatch, match="install the coordinator's version"):
        bench.worker(tmp_path).run()


def test_an_unknown_codec_ends_the_worker(bench: Any, tmp_path: Path) -> None:
    bench.fake.codec = "zip-v9"
    with pytest.raises(UnknownName, match="zip-v9"):
        bench.worker(tmp_path).run()


def test_wrong_secret_ends_the_worker(bench: Any, tmp_path: Path) -> None:
    bench.fake.secret = "other"
    with pytest.raises(Unauthorized):
        bench.worker(tmp_path).run()


def test_no_run_yet_is_waited_for(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bithaul.worker import loop

    monkeypatch.setattr(loop, "_ASK_AGAIN_SECONDS", 0.001)
    none = {"title": "t", "status": 404, "detail": "No run.", "code": "not_found"}
    bench.fake.faults["register"] = [lambda request: httpx2.Response(404, json=none)] * 2
    bench.worker(tmp_path).run()
    assert bench.fake.version == 3
