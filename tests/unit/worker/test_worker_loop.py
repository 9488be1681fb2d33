"""The worker's life against a small coordinator: closed loop, exactly once, drain, stop, restart, trouble."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from bithaul.corpus.shards import Shard
from bithaul.errors import InvalidConfig
from bithaul.exchange.codecs import codec_named, decode
from bithaul.exchange.frame import read_header
from bithaul.exchange.messages import HeartbeatRequest, LeaseOutcome, Verdict
from bithaul.exchange.weights import open_weights
from bithaul.model.config import ModelConfig
from bithaul.model.device import DevicePath
from bithaul.training import trainer as trainer_module
from bithaul.training.recipe import TrainingRecipe
from bithaul.training.trainer import Trainer
from bithaul.worker import loop as loop_module
from bithaul.worker import task as task_module
from bithaul.worker.loop import Worker
from bithaul.worker.settings import WorkerSettings, default_threads


def local(bench: Any, count: int, *, first: int = 0, start: np.ndarray | None = None) -> np.ndarray:
    """What `count` tasks make of version 1 when one trainer runs them here, without any exchange."""
    run = bench.fake.run
    trainer = Trainer(
        ModelConfig(**run.model), TrainingRecipe(**run.recipe), label_token=None, threads=1, path=None
    )
    shard = Shard.open(bench.fake.folder / "train-00000.bin", bench.fake.folder / "train-00000.idx")
    from bithaul.model.init import initial_vector

    trainer.load(initial_vector(ModelConfig(**run.model), seed=0) if start is None else start)
    for number in range(first, first + count):
        part = bench.fake.slice(number)
        trainer.train(shard.slice(part.first, part.count), progress_start=0.2, progress_end=0.3, seed=number)
    return trainer.vector()


def force_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides must compute alike: timing might choose differently on a busy machine."""
    from bithaul.model.products import default_path
    from bithaul.training import trainer

    monkeypatch.setattr(trainer, "choose_path", lambda shapes, forced=None: default_path())


def test_closed_loop_is_exact_to_the_bit(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches wrong sign, scale, slice, seed, progress, lost moments and rounding (pitfalls T1, T2, T3)."""
    force_path(monkeypatch)
    bench.fake.tasks = 3
    bench.worker(tmp_path).run()
    assert bench.fake.version == 4
    expected = local(bench, 3)
    assert np.abs(expected - np.asarray(bench.fake.theta)).max() == 0.0
    first = open_weights_of(bench, 1)
    assert np.abs(expected - first).max() > 1e-3  # and training moved it at all


def open_weights_of(bench: Any, version: int) -> np.ndarray:
    path = bench.fake.folder / "w"
    path.write_bytes(bench.fake.versions[version])
    return np.array(open_weights(path, expected_count=bench.fake.layout.size).vector)


@pytest.mark.parametrize("codec", ["int8-block-v1", "int8-ef-v1"])
def test_closed_loop_is_within_one_quantum_and_keeps_the_rest(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """Catches a residual that is not added, added twice, or of the wrong sign."""
    force_path(monkeypatch)
    bench.fake.codec, bench.fake.tasks = codec, 1
    bench.worker(tmp_path).run()
    expected, start = local(bench, 1), open_weights_of(bench, 1)
    quantum = np.abs(start - expected).max() / 127 * 1.01
    assert np.abs(bench.fake.theta - expected).max() <= quantum
    (residual,) = (tmp_path / "state/residual").iterdir()
    kept = open_weights(residual, expected_count=bench.fake.layout.size)
    np.testing.assert_allclose(bench.fake.theta - kept.vector, expected, atol=1e-6)
    assert kept.version == 1


def run_with_residuals(bench: Any, tmp_path: Path, **changes: Any) -> list[np.ndarray]:
    """Two tasks of one worker; the residual after each that changed it."""
    bench.fake.codec, bench.fake.tasks = "int8-block-v1", 2
    for name, value in changes.items():
        setattr(bench.fake, name, value)
    bench.worker(tmp_path).run()
    (residual,) = (tmp_path / "state/residual").iterdir()
    kept = np.array(open_weights(residual, expected_count=bench.fake.layout.size).vector)
    return [open_weights_of(bench, 2) - local(bench, 1), kept]


def test_an_audit_task_has_fresh_moments_and_leaves_the_residual_for_later(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a first run that nobody could repeat, and a residual that is lost with it."""
    force_path(monkeypatch)
    before, kept = run_with_residuals(bench, tmp_path, audited=frozenset({2}))
    start, end = open_weights_of(bench, 2), np.array(bench.fake.theta)
    update = start - local(bench, 1, first=1, start=start)  # by a trainer that never saw the first task
    quantum = np.abs(update).max() / 127 * 1.01
    assert np.abs((start - end) - update).max() <= quantum
    np.testing.assert_allclose(kept, before + update - (start - end), atol=1e-6)
    assert np.abs(before).max() > 1e-6


def test_a_repetition_leaves_the_residual_untouched_and_deletes_its_payload(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_path(monkeypatch)
    before, kept = run_with_residuals(bench, tmp_path, audited=frozenset({2}), compared=frozenset({2}))
    np.testing.assert_allclose(kept, before, atol=1e-6)
    assert bench.fake.version == 2
    assert not list((tmp_path / "state/outbox").iterdir())
    assert "update compared" in bench.output.getvalue()
    assert "update not merged" not in bench.output.getvalue()


def test_a_worker_says_that_it_knows_audit_tasks(bench: Any, tmp_path: Path) -> None:
    bench.fake.tasks = 0
    bench.worker(tmp_path).run()
    assert all(request.audits for request in bench.fake.registrations)


def test_the_report_says_what_was_trained(bench: Any, tmp_path: Path) -> None:
    """Catches figures copied from the task (pitfall T11), a made-up loss (T5) and the probe left out."""
    bench.fake.tasks, bench.fake.probe = 1, True
    bench.worker(tmp_path).run()
    (update,) = bench.fake.updates
    assert (update.examples, update.steps, update.tokens) == (16, 2, 16 * 9)
    assert update.heldout is not None
    assert update.heldout.version == 1
    assert abs(update.heldout.loss - np.log(48)) < 1.0
    assert abs(update.loss_first - np.log(48)) < 1.0


def test_registration_order_and_capabilities(bench: Any, tmp_path: Path) -> None:
    bench.fake.tasks = 0
    bench.worker(tmp_path, threads=1).run()
    first, second, third = bench.fake.registrations
    assert (first.layout_hash, first.capabilities) == (None, None)
    assert second.layout_hash == bench.fake.layout.hash
    assert third.capabilities is not None
    assert third.capabilities.threads == 1
    assert third.capabilities.tokens_per_second > 0
    assert "fp32" in third.capabilities.path or "int" in third.capabilities.path
    assert "calibrated" in bench.output.getvalue()


def test_a_forced_path_is_used_measured_and_reported(bench: Any, tmp_path: Path) -> None:
    """Catches an option that is read and forgotten, and a calibration along another path."""
    bench.fake.tasks = 1
    bench.worker(tmp_path, path="fp32+fp32").run()
    capabilities = bench.fake.registrations[-1].capabilities
    assert capabilities.path == "fp32+fp32: fp32+fp32 (forced)"
    assert bench.fake.version == 2


def test_a_path_without_its_device_ends_the_worker(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot pass by itself, so it must not be tried for ever."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidConfig, match="no CUDA device"):
        bench.worker(tmp_path, path="cuda").run()


def test_a_worker_on_a_device_is_the_same_worker(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole task on a device's path (the CPU as device); name and memory are those of the GPU."""
    path = DevicePath.of(torch.device("cpu"), "bf16", reason="bf16 forward on a test")
    monkeypatch.setattr(trainer_module, "choose_path", lambda shapes, forced=None: path)
    monkeypatch.setattr(
        loop_module, "hardware", lambda chosen: ("NVIDIA Test", 80) if chosen is path else None
    )
    bench.fake.tasks = 1
    bench.worker(tmp_path).run()
    capabilities = bench.fake.registrations[-1].capabilities
    assert (capabilities.device, capabilities.memory_bytes) == ("NVIDIA Test", 80)
    assert capabilities.path == "cpu: bf16 forward on a test"
    assert bench.fake.version == 2
    assert bench.fake.updates[0].tokens == 16 * 9


def test_soft_stop_returns_the_unused_tail(bench: Any, tmp_path: Path) -> None:
    """Catches a worker that trains the whole slice whatever the clock says."""
    bench.fake.tasks, bench.fake.soft_stop_seconds = 1, 0.0
    bench.worker(tmp_path).run()
    assert (bench.fake.updates[0].steps, bench.fake.updates[0].examples) == (1, 8)


def test_a_lost_answer_is_asked_for_again_with_the_same_bytes(bench: Any, tmp_path: Path) -> None:
    """Catches an update encoded twice or dropped after one failed request (pitfall Q11)."""
    bench.fake.tasks = 1
    lost: list[bytes] = []

    def lose(request: httpx2.Request) -> httpx2.Response:
        bench.fake.gradient(request)  # it arrived and was merged; only the answer is lost
        lost.append(request.read())
        raise httpx2.ReadError("cut", request=request)

    bench.fake.faults["gradient"] = [lose, lambda request: httpx2.Response(503, headers={"Retry-After": "0"})]
    bench.worker(tmp_path).run()
    assert bench.fake.version == 2
    assert bench.fake.bodies[-1] == lost[0]
    assert not list((tmp_path / "state/outbox").iterdir())


def test_after_a_restart_the_outbox_goes_first(bench: Any, tmp_path: Path) -> None:
    """Catches an update lost with the process: kill -9 between outbox and receipt."""
    bench.fake.tasks = 1
    dead = [lambda request: (_ for _ in ()).throw(httpx2.ConnectError("down", request=request))] * 100_000
    bench.fake.faults["gradient"] = dead
    bench.fake.on_beat = lambda beat: bench.stop.request() if beat.activity == "uploading" else None
    bench.worker(tmp_path).run()
    assert bench.fake.version == 1
    assert len(list((tmp_path / "state/outbox").iterdir())) == 1
    assert "kept for the next start" in bench.output.getvalue()

    bench.fake.faults.clear()
    bench.fake.on_beat = lambda beat: None
    bench.fake.calls.clear()
    second = fresh(bench, tmp_path)
    second.run()
    assert bench.fake.version == 2
    assert not list((tmp_path / "state/outbox").iterdir())
    assert bench.fake.calls["POST /gradient"] == 1


def fresh(bench: Any, tmp_path: Path) -> Worker:
    """A new process: new client, new stop."""
    from bithaul.worker.backoff import Backoff
    from bithaul.worker.client import CoordinatorClient
    from bithaul.worker.stop import Stop

    bench.client.close()
    bench.stop.close()
    bench.stop = Stop(grace=0.2)
    bench.client = CoordinatorClient(
        "http://127.0.0.1:8817",
        client_id="w",
        secret="bhw_right",
        stop=bench.stop,
        log=bench.log,
        transport=httpx2.MockTransport(bench.fake),
        backoff=Backoff(first=0.001, longest=0.002),
    )
    return bench.worker(tmp_path)


def test_a_leftover_of_a_forgotten_lease_is_dropped(bench: Any, tmp_path: Path) -> None:
    """Catches a worker stuck for ever on an update nobody wants."""
    bench.fake.tasks = 2
    refuse = {"title": "t", "status": 409, "detail": "No such lease.", "code": "unknown_fence"}

    def answer(request: httpx2.Request) -> httpx2.Response:
        bench.fake.open, bench.fake.done = None, bench.fake.done + 1
        return httpx2.Response(409, json=refuse)

    bench.fake.faults["gradient"] = [answer]
    bench.worker(tmp_path).run()
    assert "unknown_fence" in bench.output.getvalue()
    assert len(bench.fake.updates) == 1  # the next task was done
    assert not list((tmp_path / "state/outbox").iterdir())


@pytest.mark.parametrize("verdict", [Verdict.REJECTED, Verdict.STALE, Verdict.TOO_LATE])
def test_what_is_not_merged_keeps_the_old_residual(bench: Any, tmp_path: Path, verdict: Verdict) -> None:
    bench.fake.codec, bench.fake.tasks, bench.fake.verdict = "int8-block-v1", 1, verdict
    bench.worker(tmp_path).run()
    assert not list((tmp_path / "state/residual").iterdir())
    assert not list((tmp_path / "state/outbox").iterdir())
    assert "update not merged" in bench.output.getvalue()


def test_a_lost_registration_is_renewed(bench: Any, tmp_path: Path) -> None:
    gone = {"title": "t", "status": 410, "detail": "Register.", "code": "not_registered"}
    answer = lambda request: httpx2.Response(410, json=gone)  # noqa: E731
    bench.fake.faults = {"work": [answer], "gradient": [answer]}
    bench.worker(tmp_path).run()
    assert len(bench.fake.updates) == 2
    assert len(bench.fake.registrations) == 3 + 4


def when_training(bench: Any, act: Callable[[], None]) -> None:
    """Run `act` once, at the first heartbeat that says training; the steps are held until then."""
    happened = threading.Event()

    def beat(request: HeartbeatRequest) -> None:
        if request.activity == "training" and not happened.is_set():
            act()
            happened.set()

    bench.fake.on_beat = beat
    bench.happened = happened


def hold_steps(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every inner step waits until the heartbeat's answer has arrived in the worker."""
    original = task_module.TaskRunner._watch

    def patched(self: Any, task: Any) -> Any:
        go_on = original(self, task)

        def step(report: Any) -> bool:
            go_on(report)
            bench.happened.wait(20)
            seen = self._pulse.orders
            while not (bench.stop.requested or self._pulse.orders is not seen):
                pass
            return bool(go_on(report))

        return step

    monkeypatch.setattr(task_module.TaskRunner, "_watch", patched)


def test_drain_is_a_soft_stop_and_then_no_more_work(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a drain that does nothing (pitfall Q6)."""
    bench.fake.tasks = 5

    def drain() -> None:
        bench.fake.answer = bench.fake.answer.model_copy(update={"drain": True})

    when_training(bench, drain)
    hold_steps(bench, monkeypatch)
    worker = bench.worker(tmp_path)
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_for(lambda: len(bench.fake.updates) == 1)
    asked = bench.fake.calls["GET /work"]
    beats = len(bench.fake.beats)
    wait_for(lambda: len(bench.fake.beats) > beats + 3)  # alive, and idle
    assert bench.fake.calls["GET /work"] == asked
    assert bench.fake.updates[0].steps == 1
    bench.stop.request()
    thread.join(20)
    assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    done = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("it did not happen")


def test_stop_after_a_step_reports_what_was_used(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches work thrown away by SIGTERM."""
    bench.fake.tasks = 5
    when_training(bench, bench.stop.request)
    hold_steps(bench, monkeypatch)
    bench.worker(tmp_path).run()
    assert [u.steps for u in bench.fake.updates] == [1]
    assert not (tmp_path / "health").exists()


def test_stop_before_the_first_step_releases_the_lease(bench: Any, tmp_path: Path) -> None:
    """Catches a lease that blocks its slice until it expires."""
    bench.fake.tasks = 5

    def stop(request: httpx2.Request) -> httpx2.Response:
        bench.stop.request()
        raise httpx2.ConnectError("down", request=request)

    bench.fake.faults["weights"] = [stop]
    bench.worker(tmp_path).run()
    assert bench.fake.updates == []
    assert [b.outcome for b in bench.fake.beats if b.outcome] == [LeaseOutcome.RELEASED]


def test_a_lease_that_was_taken_away_ends_the_task(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches training on for minutes on a task that is someone else's."""
    bench.fake.tasks = 1

    def close() -> None:
        bench.fake.answer = bench.fake.answer.model_copy(update={"lease_open": False})

    when_training(bench, close)
    hold_steps(bench, monkeypatch)
    bench.worker(tmp_path).run()
    assert [u.steps for u in bench.fake.updates] == [1]  # the coordinator judges what was done


def test_heartbeats_carry_progress(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the worker that always says idle (pitfall Q7)."""
    bench.fake.tasks = 1
    when_training(bench, lambda: None)
    hold_steps(bench, monkeypatch)
    bench.worker(tmp_path).run()
    training = [b for b in bench.fake.beats if b.activity == "training" and b.tokens]
    assert training
    assert training[-1].task == 1
    assert training[-1].fence == f"{1:032x}"
    assert training[-1].tokens % 72 == 0
    assert training[-1].loss is not None
    assert training[-1].tokens_per_second > 0


def test_logs_reach_the_coordinator(bench: Any, tmp_path: Path) -> None:
    bench.worker(tmp_path).run()
    shipped = bench.fake.shipped()
    assert {"joined run", "calibrated", "trained", "update accepted", "worker ended"} <= set(shipped)
    assert shipped.index("joined run") < shipped.index("worker ended")


def test_a_finished_run_does_not_end_a_worker_that_stays(bench: Any, tmp_path: Path) -> None:
    bench.fake.tasks = 0
    worker = bench.worker(tmp_path)
    worker._settings = WorkerSettings(
        url="http://127.0.0.1:8817", client_id="w", state_dir=tmp_path / "state", calibration_seconds=0.01
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_for(lambda: bench.fake.calls["GET /work"] > 5)
    bench.stop.request()
    thread.join(20)
    assert not thread.is_alive()


def test_payload_on_disk_is_what_the_codec_reads(bench: Any, tmp_path: Path) -> None:
    bench.fake.tasks, bench.fake.codec = 1, "int8-block-v1"
    bench.worker(tmp_path).run()
    import io

    file = io.BytesIO(bench.fake.bodies[0])
    header = read_header(file)
    u = decode(codec_named(header.codec), file.read(), bench.fake.layout)
    assert 0 < np.abs(u).max() < 1.0


def test_default_threads_is_sensible() -> None:
    import os

    assert 1 <= default_threads() <= (os.cpu_count() or 1)
