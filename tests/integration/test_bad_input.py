"""Bad input, one test each, at the door where a person or a peer brings it: real HTTP, real files, real disk.

Where each kind is refused; tests of the same rules further in are named where they add a case:

- unknown preset: test_an_unknown_preset_is_said_before_anything_is_read; e2e/test_up.py (bad_input)
- layout mismatch, of a worker: test_a_worker_of_another_layout_is_refused
- layout mismatch, of an update: test_a_bad_update_is_rejected_and_changes_nothing[layout]
- layout mismatch, of stored weights: unit/coordinator/test_core_startup.py (weights_of_another_model)
- weight file truncated or bit-flipped, at the start: test_a_coordinator_does_not_start_on_damaged_weights
- the same, as a download: test_a_worker_never_uses_damaged_weights; unit/worker/test_worker_transfers.py
- update of wrong length, with NaN, of a foreign task: test_a_bad_update_is_rejected_and_changes_nothing,
  test_an_update_too_short_is_refused_before_its_body, test_the_lease_of_another_is_not_found
- unknown shard: test_an_unknown_shard_is_not_found, test_a_task_with_an_unknown_shard_is_reported
- corrupted shard, on import: unit/coordinator/test_core_startup.py (corrupted_shard_is_not_imported)
- the same, as a download: test_a_worker_never_trains_on_a_damaged_shard
- malformed TSV or JSONL line: test_a_malformed_line_is_named_with_file_and_number
- port in use: test_up_says_that_the_port_is_in_use; test_api_process.py (port_in_use)
- disk full on upload: test_a_full_disk_keeps_nothing_and_loses_nothing, on a real full disk
- wrong secret: test_a_wrong_secret_ends_the_worker; unit/worker/test_worker_cli.py
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bithaul.cli import main
from bithaul.coordinator.api import gradient as gradient_module
from bithaul.errors import CorruptFile, Unauthorized
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import write_frame
from bithaul.exchange.messages import Range, RegisterRequest, ReportHeader
from bithaul.worker import loop as loop_module
from bithaul.worker.client import CoordinatorClient
from bithaul.worker.transfers import Transfers

OCTETS = {"Content-Type": "application/octet-stream"}


def command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and standard error of `bithaul ...`, run in this process."""
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) as caught:
            main.run(arguments)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    return int(caught.value.code or 0), capsys.readouterr().err.strip()


def join(http: Any, **changes: Any) -> Any:
    """Register as a worker that can work; the answer of the second call."""
    message = {"codecs": ["fp32-v1", "int8-block-v1"], "weight_formats": ["weights-v1"]}
    run = http.post("/register", json=message).json()["run"]
    able = {"device": "cpu", "threads": 1, "memory_bytes": 1, "tokens_per_second": 50.0, "software": "1"}
    ready = {**message, "layout_hash": run["layout_hash"], "capabilities": able, **changes}
    return http.post("/register", json=ready)


def frame(room: Any, leased: Any, /, payload: bytes | None = None, **changes: Any) -> bytes:
    """A good report of this task, except for `changes`."""
    run = room.run
    if payload is None:
        payload = bytes(codec_named(run.codec).encode(np.full(run.layout.size, 1e-3, np.float32), run.layout))
    values: dict[str, Any] = {
        "codec": run.codec,
        "run": run.name,
        "layout_hash": run.layout_hash,
        "base_version": leased["base_version"],
        "task": leased["task"],
        "fence": leased["fence"],
        "examples": leased["examples"],
        "tokens": leased["examples"],
        "steps": 1,
        "seconds": 1.0,
        "loss_first": 3.0,
        "loss_last": 2.0,
        "loss_mean": 2.5,
        "payload_size": len(payload),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }
    stream = io.BytesIO()
    write_frame(stream, ReportHeader(**{**values, **changes}), payload)
    return stream.getvalue()


def path_of(task: Any) -> str:
    return f"/gradient?task={task['task']}&fence={task['fence']}"


def incoming(room: Any) -> list[str]:
    return [p.name for p in (room.directory / "incoming").iterdir()]


# -- updates --------------------------------------------------------------------------------------------


def with_nan(room: Any, task: Any) -> bytes:
    payload = codec_named("fp32-v1").encode(np.zeros(room.run.layout.size, np.float32), room.run.layout)
    payload[-4:] = struct.pack("<f", float("nan"))
    return frame(room, task, bytes(payload))


def longer(room: Any, task: Any) -> bytes:
    good = bytes(codec_named("fp32-v1").encode(np.zeros(room.run.layout.size, np.float32), room.run.layout))
    return frame(room, task, good + b"\0" * 4)


BAD: dict[str, tuple[Callable[[Any, Any], bytes], str]] = {
    "nan": (with_nan, "non_finite"),
    "wrong length": (longer, "wrong_length"),
    "foreign task": (lambda room, task: frame(room, task, task=task["task"] + 1), "foreign_task"),
    "foreign fence": (lambda room, task: frame(room, task, fence="f" * 32), "foreign_task"),
    "foreign run": (lambda room, task: frame(room, task, run="another"), "foreign_run"),
    "layout": (lambda room, task: frame(room, task, layout_hash="0" * 64), "layout_mismatch"),
    "flipped bit": (lambda room, task: frame(room, task, payload_sha256="0" * 64), "frame_sha256"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_update_is_rejected_and_changes_nothing(room: Any, kind: str) -> None:
    """Catches an update that is merged although it must not, and a task that is lost with it."""
    make, code = BAD[kind]
    room.make_run(codec="fp32-v1")
    before = room.theta(1)
    with room.serve(), room.http("w1") as http:
        assert join(http).status_code == 200
        task = http.get("/work").json()
        refused = http.post(path_of(task), content=make(room, task), headers=OCTETS)
        assert (refused.status_code, refused.json()["verdict"]) == (422, "rejected"), refused.text
        assert refused.json()["code"] == code, refused.text
        assert refused.json()["reason"].endswith(".")
        assert incoming(room) == []
        with room.http("w2") as other:
            assert join(other).status_code == 200
            again = other.get("/work").json()
            assert again["ranges"] == task["ranges"], "the slice of the rejected update must be done again"
            accepted = other.post(path_of(again), content=frame(room, again), headers=OCTETS)
        assert accepted.json()["verdict"] == "accepted", accepted.text
    assert room.version == 1 or not np.isnan(room.theta(room.version)).any()
    assert np.array_equal(room.theta(1), before)


def test_an_update_too_short_is_refused_before_its_body(room: Any) -> None:
    room.make_run(codec="fp32-v1")
    with room.serve(), room.http("w1") as http:
        join(http)
        task = http.get("/work").json()
        refused = http.post(path_of(task), content=b"x" * 100, headers=OCTETS)
        assert (refused.status_code, refused.json()["code"]) == (422, "wrong_length"), refused.text


def test_the_lease_of_another_is_not_found(room: Any) -> None:
    """Catches an update accepted from a worker that does not hold the task."""
    room.make_run(codec="fp32-v1")
    with room.serve(), room.http("w1") as http, room.http("w2") as thief:
        join(http)
        join(thief)
        task = http.get("/work").json()
        refused = thief.post(path_of(task), content=frame(room, task), headers=OCTETS)
        assert (refused.status_code, refused.json()["code"]) == (409, "unknown_fence")
        assert http.post(path_of(task), content=frame(room, task), headers=OCTETS).status_code == 200


def test_a_worker_of_another_layout_is_refused(room: Any) -> None:
    """Catches a worker of another version that trains for hours and is rejected at the end."""
    room.make_run()
    with room.serve(), room.http("w1") as http:
        refused = join(http, layout_hash="0" * 64)
        assert (refused.status_code, refused.json()["code"]) == (422, "layout_mismatch"), refused.text
        assert "install" in refused.json()["detail"]
        assert http.get("/work").status_code == 204, "a worker that does not agree gets no work"


# -- weights and shards ---------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("spoil", [flip, truncate])
def test_a_coordinator_does_not_start_on_damaged_weights(
    room: Any, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a run that goes on with other weights than it had, or with new ones."""
    room.make_run()
    spoil(room.weights_file(1))
    room.c.close()
    code, said = command(["coordinator", "--dir", str(room.directory), "--port", "0"], capsys)
    assert code == 3
    assert said.count("\n") == 0
    assert "version 1" in said.lower()
    assert "backup" in said


def downloads(peer: Any, folder: Path) -> Transfers:
    return Transfers(peer.client, folder, stop=peer.stop, moved=lambda count: None)


@pytest.mark.parametrize("spoil", [flip, truncate])
def test_a_worker_never_uses_damaged_weights(
    room: Any, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """Catches a download that is believed without its SHA-256, or kept in the cache."""
    room.make_run()
    path = room.weights_file(1)
    good = path.read_bytes()
    wanted = {"sha256": hashlib.sha256(good).hexdigest(), "size": len(good)}
    with room.serve(), room.client("w1") as peer:
        join_as(peer)
        spoil(path)
        with pytest.raises(CorruptFile, match="/weights/1"):
            downloads(peer, tmp_path).weights(1, **wanted)
        assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == []
        path.write_bytes(good)
        assert downloads(peer, tmp_path).weights(1, **wanted).read_bytes() == good


def join_as(peer: Any) -> None:
    request = RegisterRequest(codecs=["int8-block-v1"], weight_formats=["weights-v1"])
    peer.client.register(request)


def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_LONGEST_REST", 0.0)


def test_a_worker_never_trains_on_a_damaged_shard(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches training on damaged tokens. The operator repairs the file after the first report."""
    no_rest(monkeypatch)
    manifest = room.make_run(budget_tokens=300.0, task_seconds=60.0)
    good = {}
    for shard in manifest.shards:
        path = room.c.blobs.get(shard.sha256).path
        good[path] = path.read_bytes()
        flip(path)
    told = CoordinatorClient.heartbeat

    def heartbeat(self: Any, request: Any, **options: Any) -> Any:
        if request.outcome is not None:
            codes.append(request.code)
            for path, data in good.items():
                path.write_bytes(data)
        return told(self, request, **options)

    codes: list[str] = []
    monkeypatch.setattr(CoordinatorClient, "heartbeat", heartbeat)
    with room.serve():
        room.work("w1")
    assert codes == ["shard_unavailable"]
    assert room.run.state == "finished"


def test_an_unknown_shard_is_not_found(room: Any) -> None:
    room.make_run()
    with room.serve(), room.http("w1") as http:
        join(http)
        for path in ("/corpus/train-00099", "/corpus/train-00099/index", "/corpus/coordinator.db"):
            refused = http.get(path)
            assert (refused.status_code, refused.json()["code"]) == (404, "unknown_shard"), refused.text


def test_a_task_with_an_unknown_shard_is_reported(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a worker that dies of a strange task, or keeps its lease in silence."""
    no_rest(monkeypatch)
    room.make_run(budget_tokens=300.0, task_seconds=60.0)
    asked, told, codes = CoordinatorClient.work, CoordinatorClient.heartbeat, list[str]()

    def work(self: Any) -> Any:
        answer = asked(self)
        if answer.task is None or codes:
            return answer
        strange = [Range(shard="train-00099", first=0, count=answer.task.examples)]
        return replace(answer, task=answer.task.model_copy(update={"ranges": strange}))

    def heartbeat(self: Any, request: Any, **options: Any) -> Any:
        if request.outcome is not None:
            codes.append(request.code)
        return told(self, request, **options)

    monkeypatch.setattr(CoordinatorClient, "work", work)
    monkeypatch.setattr(CoordinatorClient, "heartbeat", heartbeat)
    with room.serve():
        room.work("w1")
    assert codes == ["shard_unavailable"]
    assert room.run.state == "finished"


def test_a_wrong_secret_ends_the_worker(room: Any) -> None:
    """Catches endless retries, and a secret in the message."""
    room.make_run()
    room.secret("w1")
    with room.serve(), pytest.raises(Unauthorized, match="'w1'") as caught:
        room.work("w1", secret="bhw_not-the-right-one")
    assert "not-the-right-one" not in str(caught.value)
    assert room.logged("joined run") == []


# -- the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lines", "number"),
    [
        ("t.tsv", ["play a song\tmusic", "no tab here", "stop it\tmusic"], 2),
        ("t.jsonl", ['{"text": "play", "intent": "music"}', '{"text": "stop", "intent": }'], 2),
        ("t.jsonl", ['{"text": "play", "intent": "music"}', "", '{"text": 7, "intent": "music"}'], 3),
    ],
)
def test_a_malformed_line_is_named_with_file_and_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, lines: list[str], number: int
) -> None:
    """Catches a traceback, a skipped line, and a half-made run that blocks the next try."""
    train, valid, run = tmp_path / name, tmp_path / "valid.tsv", tmp_path / "run"
    train.write_text("\n".join(lines) + "\n", encoding="utf-8")
    valid.write_text("play it\tmusic\n", encoding="utf-8")
    options = ["up", "--dir", str(run), "--train", str(train), "--valid", str(valid)]
    code, said = command(options, capsys)
    assert code == 2, said
    assert f"{name}:{number}" in said
    assert "Traceback" not in said
    assert not (run / "run.json").exists()


def test_an_unknown_preset_is_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a fallback to another preset, and minutes of preparation before the message."""
    data = tmp_path / "t.tsv"
    data.write_text("no tab here\n", encoding="utf-8")
    options = ["up", "--dir", str(tmp_path / "run"), "--preset", "smal"]
    code, said = command([*options, "--train", str(data), "--valid", str(data)], capsys)
    assert (code, said.count("\n")) == (2, 0), said
    assert "small, medium, large" in said
    assert not (tmp_path / "run" / "corpus").exists()


@pytest.mark.process
def test_up_says_that_the_port_is_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a minute of waiting for a coordinator that cannot start, and a folder that stays locked."""
    data, model = tmp_path / "t.tsv", tmp_path / "tiny.toml"
    data.write_text("".join(f"play {w}\tmusic\n" for w in ("this", "that", "it")) * 8, encoding="utf-8")
    model.write_text("hidden_size=16\nintermediate_size=32\nnum_layers=1\nnum_heads=2\ncontext_length=32\n")
    options = ["up", "--dir", str(tmp_path / "run"), "--preset", str(model)]
    options += ["--train", str(data), "--valid", str(data), "--budget-tokens", "1000"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        code, said = command([*options, "--port", port], capsys)
    assert code == 9, said
    last = said.splitlines()[-1]
    assert port in last
    assert "--port" in last
    assert not (tmp_path / "run" / "corpus").exists(), "it should be said before the data is prepared"
    assert "Traceback" not in said


# -- a full disk ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs Linux and root")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """A file that takes what is left, to the last byte."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 65_536) == 65_536:
                pass
            while file.write(b"x"):
                pass
        except OSError:
            pass
    assert shutil.disk_usage(place).free < 4096
    return filler


@pytest.mark.parametrize("seen", ["before the body", "in the body"])
def test_a_full_disk_keeps_nothing_and_loses_nothing(
    small_disk: Path, make_room: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    """Catches half an update that is kept or counted, an accepted one that is lost, a worker that gives up.

    The disk of the blobs is full when the worker uploads; after two refusals somebody makes room.
    """
    database = f"sqlite:///{tmp_path / 'coordinator.db'}"
    room = make_room(small_disk / "run", database_url=database)
    room.workers = tmp_path / "workers"
    room.make_run(budget_tokens=300.0, task_seconds=60.0, codec="fp32-v1")
    refusals: list[str] = []
    if seen == "in the body":
        monkeypatch.setattr(type(room.c.blobs), "free_bytes", lambda self: 2**40)
    asked, filler = gradient_module.begin_upload, list[Path]()

    def begin_upload(*args: Any, **options: Any) -> Any:
        if len(refusals) == 2 and filler:
            assert incoming(room) == [], "a refused upload left something behind"
            filler.pop().unlink()
        elif not refusals:
            filler.append(fill(small_disk))
        if filler:
            refusals.append("disk")
        return asked(*args, **options)

    monkeypatch.setattr(gradient_module, "begin_upload", begin_upload)
    with room.serve():
        room.work("w1")
    assert len(refusals) == 2
    assert room.run.state == "finished"
    assert incoming(room) == []
    assert room.version == 2
    assert not np.array_equal(room.theta(1), room.theta(2))
