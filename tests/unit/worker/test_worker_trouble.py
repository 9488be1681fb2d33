"""What a worker says when it cannot work, and when it ends: failures aloud, nothing broken on the wire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from bithaul.errors import LayoutMismatch, Unauthorized, UnknownName
from bithaul.exchange.frame import read_header
from bithaul.exchange.messages import LeaseOutcome
from bithaul.training.trainer import Trainer
from bithaul.worker import residual as residual_module
from bithaul.worker.outbox import Outbox


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


def refusal(status: int, code: str) -> httpx2.Response:
    body = {"type": "about:blank", "title": "t", "status": status, "detail": f"It is {code}.", "code": code}
    return httpx2.Response(status, json=body)


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


@pytest.mark.parametrize(("status", "code"), [(404, "no_run"), (413, "too_large"), (415, "media_type")])
def test_an_update_refused_without_a_receipt_is_sent_again(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    """Catches training that is thrown away because a proxy or an empty folder answered (pitfall Q11)."""
    patience(monkeypatch)
    bench.fake.tasks = 1
    bench.fake.faults["gradient"] = [lambda _: refusal(status, code)] * 2
    bench.worker(tmp_path).run()
    assert len(bench.fake.updates) == 1
    assert bench.fake.version == 2
    assert bench.output.getvalue().count("kept to be sent again") == 2


def test_an_update_that_is_always_refused_is_set_aside_and_work_goes_on(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches one update nobody takes that keeps a machine idle for ever, and one that is deleted."""
    patience(monkeypatch)
    bench.fake.tasks = 1
    bench.fake.faults["gradient"] = [lambda _: refusal(413, "too_large")] * 10
    bench.worker(tmp_path).run()
    assert "set aside" in bench.output.getvalue()
    (kept,) = (tmp_path / "state/outbox/.refused").iterdir()
    with (kept / "update.bhuf").open("rb") as file:
        assert read_header(file).task == 1
    assert bench.fake.version == 2  # the task was leased again and done


def test_an_update_of_no_lease_is_deleted(bench: Any, tmp_path: Path) -> None:
    bench.fake.tasks = 1
    bench.fake.faults["gradient"] = [lambda _: refusal(409, "unknown_fence")]
    bench.worker(tmp_path).run()
    assert "update refused, dropped" in bench.output.getvalue()
    assert not list((tmp_path / "state/outbox").iterdir())


def test_a_stop_keeps_an_update_that_is_being_refused(bench: Any, tmp_path: Path) -> None:
    """Catches a worker that cannot be stopped while it waits, or that forgets what it had."""
    bench.fake.tasks = 1

    def refuse(_: httpx2.Request) -> httpx2.Response:
        for _ in range(2):  # at once, without the grace period
            bench.stop.request()
        return refusal(404, "no_run")

    bench.fake.faults["gradient"] = [refuse]
    bench.worker(tmp_path).run()
    (entry,) = Outbox(tmp_path / "state/outbox").entries()
    assert entry.header.task == 1


def test_a_disk_full_at_the_receipt_costs_the_residual_only(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a worker that ends with a traceback, again at each start, over an update that counted."""
    bench.fake.codec, bench.fake.tasks, bench.fake.clip = "int8-block-v1", 1, 0.5
    original = residual_module.write_weights

    def full(*args: Any) -> str:
        if args[2] is not None and "residual" in str(getattr(args[0], "name", "")):
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(residual_module, "write_weights", full)
    bench.worker(tmp_path).run()
    assert bench.fake.version == 2
    assert "residual dropped" in bench.output.getvalue()
    assert [path for path in (tmp_path / "state/residual").iterdir() if path.suffix == ".bgwt"] == []
    assert not list((tmp_path / "state/outbox").iterdir())
