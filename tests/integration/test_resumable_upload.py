"""Resumable upload (tus 1.0.0): broken lines, restarts, rotations cost what was under way and no more."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from bithaul.coordinator.api import behind as behind_module
from bithaul.coordinator.database import runs
from bithaul.coordinator.identity.clients import rotate_client
from bithaul.coordinator.services.prune import prune
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import write_frame
from bithaul.exchange.messages import ReportHeader, Verdict
from bithaul.worker import client as client_module
from bithaul.worker import upload as upload_module

TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = {**TUS, "Content-Type": "application/offset+octet-stream"}


def join(http: httpx2.Client) -> None:
    message = {"codecs": ["fp32-v1", "int8-block-v1"], "weight_formats": ["weights-v1"]}
    run = http.post("/register", json=message).json()["run"]
    able = {"device": "cpu", "threads": 1, "memory_bytes": 1, "tokens_per_second": 50.0, "software": "1"}
    ready = {**message, "layout_hash": run["layout_hash"], "capabilities": able}
    assert http.post("/register", json=ready).status_code == 200


def frame(run: runs.RunRow, task: Any, **changes: Any) -> bytes:
    """A good report of this task."""
    payload = bytes(codec_named(run.codec).encode(np.full(run.layout.size, 1e-3, np.float32), run.layout))
    values: dict[str, Any] = {
        "codec": run.codec,
        "run": run.name,
        "layout_hash": run.layout_hash,
        "base_version": task["base_version"],
        "task": task["task"],
        "fence": task["fence"],
        "examples": task["examples"],
        "tokens": task["examples"],
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


def metadata(task: Any, data: bytes | None) -> str:
    found = {"task": str(task["task"]), "fence": task["fence"]}
    if data is not None:
        found["sha256"] = hashlib.sha256(data).hexdigest()
    return ",".join(f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in found.items())


def begin(http: httpx2.Client, task: Any, data: bytes, **headers: str) -> httpx2.Response:
    about = {"Upload-Length": str(len(data)), "Upload-Metadata": metadata(task, data)}
    return http.post("/gradient", headers={**TUS, **about, **headers})


def patch(http: httpx2.Client, place: str, data: bytes, offset: int, **headers: str) -> httpx2.Response:
    return http.patch(place, content=data, headers={**OCTETS, "Upload-Offset": str(offset), **headers})


def offset_at(http: httpx2.Client, place: str) -> int:
    answer = http.head(place, headers=TUS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


@pytest.fixture
def served(room: Any) -> Iterator[Any]:
    room.make_run(codec="fp32-v1")  # for a long update
    with room.serve():
        yield room


@contextmanager
def leased(room: Any, worker: str = "w1") -> Iterator[tuple[httpx2.Client, Any, bytes]]:
    """(HTTP client with a token, task, frame) of a worker with a lease."""
    with room.http(worker) as http:
        join(http)
        task = http.get("/work").json()
        yield http, task, frame(room.run, task)


def accepted(room: Any) -> int:
    with room.c.database.read() as connection:
        run = runs.get_run(connection)
        found = connection.exec_driver_sql("SELECT verdict FROM reports WHERE run_id = ?", (run.id,))
        return sum(verdict == Verdict.ACCEPTED for (verdict,) in found)


def test_an_update_in_pieces_is_counted_once(served: Any) -> None:
    with leased(served) as (http, task, data):
        first = begin(http, task, data)
        assert (first.status_code, first.headers["upload-offset"]) == (201, "0")
        place = first.headers["location"]
        third = len(data) // 3
        assert patch(http, place, data[:third], 0).headers["upload-offset"] == str(third)
        assert offset_at(http, place) == third
        again = begin(http, task, data)  # asked once more: the same upload, as far as it is
        assert (again.headers["location"], again.headers["upload-offset"]) == (place, str(third))
        wrong = patch(http, place, data[third:], third + 1)
        assert (wrong.status_code, wrong.json()["code"]) == (409, "upload_offset")
        assert patch(http, place, data[third:-5], third).status_code == 204
        last = patch(http, place, data[-5:], len(data) - 5)
        assert (last.status_code, last.headers["upload-offset"]) == (204, str(len(data)))
        assert accepted(served) == 1, "the last byte submits, whoever comes back"
        receipt = begin(http, task, data)
        assert (receipt.status_code, receipt.json()["verdict"]) == (200, "accepted")
        assert http.head(place, headers=TUS).status_code == 404
        assert begin(http, task, data).json() == receipt.json()
        assert accepted(served) == 1
        assert not list(served.c.settings.uploads_folder.iterdir())


def test_what_arrived_before_a_cut_is_kept(served: Any) -> None:
    """A raw connection that is shut in the middle of a PATCH. Catches a body that is dropped as a whole."""
    with leased(served) as (http, task, data):
        place = begin(http, task, data).headers["location"]
        host, port = served.url.removeprefix("http://").split(":")
        half = len(data) // 2
        with socket.create_connection((host, int(port))) as line:
            head = (
                f"PATCH {place} HTTP/1.1\r\nHost: {host}:{port}\r\nTus-Resumable: 1.0.0\r\n"
                f"Authorization: {http.headers['authorization']}\r\nUpload-Offset: 0\r\n"
                f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            line.sendall(head.encode() + data[:half])
            time.sleep(0.2)
        deadline = time.monotonic() + 10
        while (offset := offset_at(http, place)) < half:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert offset == half
        assert patch(http, place, data[half:], half).status_code == 204
        assert begin(http, task, data).json()["verdict"] == "accepted"


def test_a_newer_patch_wins_over_one_that_hangs(served: Any) -> None:
    """The older is usually a dead connection; waiting for its timeout would cost a minute."""
    with leased(served) as (http, task, data):
        place = begin(http, task, data).headers["location"]
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as line:
            head = (
                f"PATCH {place} HTTP/1.1\r\nHost: {host}:{port}\r\nTus-Resumable: 1.0.0\r\n"
                f"Authorization: {http.headers['authorization']}\r\nUpload-Offset: 0\r\n"
                f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            line.sendall(head.encode() + data[:100])
            time.sleep(0.3)
            offset = offset_at(http, place)
            assert patch(http, place, data[offset:], offset).status_code == 204
            line.sendall(data[100:])  # it wakes up, too late
            time.sleep(0.2)
        assert begin(http, task, data).json()["verdict"] == "accepted"
        assert accepted(served) == 1


def test_damaged_bytes_are_taken_back(served: Any) -> None:
    with leased(served) as (http, task, data):
        place = begin(http, task, data).headers["location"]
        for name in ("sha1", "sha256"):
            digest = base64.b64encode(hashlib.new(name, data[:100], usedforsecurity=False).digest()).decode()
            damaged = patch(http, place, b"x" + data[1:100], 0, **{"Upload-Checksum": f"{name} {digest}"})
            assert (damaged.status_code, damaged.json()["code"]) == (460, "checksum_mismatch")
            assert offset_at(http, place) == 0
        unknown = patch(http, place, data[:100], 0, **{"Upload-Checksum": "md5 AAAA"})
        assert (unknown.status_code, unknown.json()["code"]) == (400, "checksum_algorithm")
        assert patch(http, place, data[:100], 0, **{"Upload-Checksum": f"sha256 {digest}"}).status_code == 204
        spoilt = data[100:-1] + bytes([data[-1] ^ 1])  # without a checksum only the whole one tells
        assert patch(http, place, spoilt, 100).status_code == 204
        assert accepted(served) == 0
        fresh = begin(http, task, data)
        assert (fresh.status_code, fresh.headers["upload-offset"]) == (201, "0"), "sent again from the start"
        assert patch(http, fresh.headers["location"], data, 0).status_code == 204
        assert begin(http, task, data).json()["verdict"] == "accepted"


def test_creation_takes_bytes_too_and_deletion_ends_an_upload(served: Any) -> None:
    with leased(served) as (http, task, data):
        about = {"Upload-Length": str(len(data)), "Upload-Metadata": metadata(task, None)}
        first = http.post("/gradient", content=data[:50], headers={**OCTETS, **about})
        assert (first.status_code, first.headers["upload-offset"]) == (201, "50")
        place = first.headers["location"]
        assert "GMT" in first.headers["upload-expires"]
        assert http.delete(place, headers=TUS).status_code == 204
        assert http.head(place, headers=TUS).status_code == 404
        second = begin(http, task, data).headers["location"]
        assert second != place
        override = {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"}
        assert http.post(second, content=data, headers={**OCTETS, **override}).status_code == 204
        assert accepted(served) == 1


def test_what_is_spoken_and_what_is_refused(served: Any) -> None:
    """Each refusal before a byte of the body is used."""
    with leased(served) as (http, task, data):
        spoken = http.options("/gradient", headers=TUS)
        assert spoken.status_code == 204
        assert spoken.headers["tus-version"] == "1.0.0"
        assert {"creation", "checksum", "termination"} <= set(spoken.headers["tus-extension"].split(","))
        assert int(spoken.headers["tus-max-size"]) >= len(data)
        most = int(spoken.headers["tus-max-size"])
        about = {"Upload-Metadata": metadata(task, data)}
        for headers, status, code in (
            ({"Tus-Resumable": "0.2.2", "Upload-Length": "9"}, 412, "tus_version"),
            ({}, 411, "length_required"),
            ({"Upload-Length": "many"}, 400, "bad_request"),
            ({"Upload-Length": "0"}, 422, "wrong_length"),
            ({"Upload-Length": str(most + 1)}, 413, "too_large"),
            ({"Upload-Length": "9"}, 422, "wrong_length"),
            ({"Upload-Length": str(len(data)), "Upload-Metadata": "task !"}, 400, "upload_metadata"),
            (
                {
                    "Upload-Length": str(len(data)),
                    "Upload-Metadata": metadata({**task, "fence": "f" * 32}, data),
                },
                409,
                "unknown_fence",
            ),
        ):
            answer = http.post("/gradient", headers={**TUS, **about, **headers})
            assert (answer.status_code, answer.json()["code"]) == (status, code), headers
        place = begin(http, task, data).headers["location"]
        assert patch(http, place, data + b"!", 0).json()["code"] == "wrong_length"
        assert http.patch(place, content=b"x", headers={**TUS, "Upload-Offset": "0"}).status_code == 415
        assert http.post(place, headers=TUS).status_code == 400
        with served.http("w2") as other:  # another worker learns nothing, not even that it exists
            join(other)
            for method in ("HEAD", "PATCH", "DELETE"):
                answer = other.request(method, place, headers={**OCTETS, "Upload-Offset": "0"}, content=b"")
                assert answer.status_code == 404
            assert begin(other, task, data).json()["code"] == "unknown_fence"


def test_a_rotated_secret_ends_the_upload_and_nothing_is_applied(served: Any) -> None:
    with leased(served) as (http, task, data):
        place = begin(http, task, data).headers["location"]
        assert patch(http, place, data[:1000], 0).status_code == 204
        rotate_client(served.c, "w1")
        assert patch(http, place, data[1000:], 1000).status_code == 401
        assert accepted(served) == 0


def test_uploads_survive_a_restart_and_go_after_a_day(make_room: Any) -> None:
    room = make_room()
    room.make_run()
    with room.serve(), leased(room) as (http, task, data):
        place = begin(http, task, data).headers["location"]
        assert patch(http, place, data[:1000], 0).status_code == 204
    room.c.close()
    again = make_room(room.directory)
    again.clients = room.clients
    with again.serve(), again.http("w1") as http:
        assert offset_at(http, place) == 1000
        day = 86_400
        for path in again.c.settings.uploads_folder.iterdir():
            os.utime(path, (time.time() - day + 60, time.time() - day + 60))
        prune(again.c)
        assert offset_at(http, place) == 1000
        for path in again.c.settings.uploads_folder.iterdir():
            os.utime(path, (time.time() - day - 60, time.time() - day - 60))
        assert "1 broken uploads deleted" in prune(again.c)
        assert http.head(place, headers=TUS).status_code == 404
        assert not list(again.c.settings.uploads_folder.iterdir())


class CuttingProxy:
    """Forwards connections to `target` and cuts each, both ways, after so many bytes to it."""

    def __init__(self, target: tuple[str, int], cut_after: list[int]) -> None:
        self._target, self._cut_after = target, cut_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(inner,), daemon=True).start()

    def _forward(self, inner: socket.socket) -> None:
        outer = socket.create_connection(self._target)
        threading.Thread(target=self._back, args=(outer, inner), daemon=True).start()
        with inner, outer:
            sent = 0
            while piece := inner.recv(16_384):
                sent += len(piece)
                if self._cut_after and sent > self._cut_after[0]:
                    self._cut_after.pop(0)
                    self.cuts += 1
                    break
                outer.sendall(piece)
            for end in (inner, outer):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _back(self, outer: socket.socket, inner: socket.socket) -> None:
        with suppress(OSError):
            while piece := outer.recv(65_536):
                inner.sendall(piece)

    def close(self) -> None:
        self._listener.close()


def test_a_worker_goes_on_through_a_line_that_keeps_breaking(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five cuts, each may cost a chunk. Catches an upload that starts over: it sends 80,000 bytes more."""
    monkeypatch.setattr(client_module, "RESUMABLE_BYTES", 1000)
    for name in ("SMALLEST", "FIRST", "LARGEST"):
        monkeypatch.setattr(upload_module, name, 40_000)
    for module in (upload_module, behind_module):
        monkeypatch.setattr(module, "PIECE", 4_000)
    with leased(served) as (_, task, data):
        file = tmp_path / "update"
        file.write_bytes(data)
        host, port = served.url.removeprefix("http://").split(":")
        proxy = CuttingProxy((host, int(port)), [30_000, 30_000, 60_000, 20_000, 45_000])
        served.url, direct = proxy.url, served.url
        moved: list[int] = []
        try:
            with served.client("w1") as peer:
                receipt = peer.client.submit(task["task"], task["fence"], file, moved=moved.append)
        finally:
            served.url = direct
            proxy.close()
        assert receipt.verdict is Verdict.ACCEPTED
        assert proxy.cuts == 5
        assert len(data) > 200_000
        assert sum(moved) <= len(data) + 5 * 40_000
        assert accepted(served) == 1


def process_of(room: Any, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """`bithaul coordinator` on the room's folder, once it listens, and its address."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "bithaul", "coordinator", "--json"),
            *("--dir", str(room.directory), "--port", str(port)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["url"]


@pytest.mark.process
def test_a_killed_coordinator_goes_on_where_it_was(room: Any) -> None:
    """kill -9 between two chunks; the new process on the same folder knows the upload."""
    room.make_run()
    secret = room.secret("w1")
    room.c.close()
    process, room.url = process_of(room)
    try:
        with room.http("w1") as http:
            join(http)
            task = http.get("/work").json()
            data = frame(room.run, task)
            place = begin(http, task, data).headers["location"]
            assert patch(http, place, data[:20_000], 0).status_code == 204
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=20)
        process, room.url = process_of(room, int(room.url.rpartition(":")[2]))
        assert secret
        with room.http("w1") as http:
            offset = offset_at(http, place)
            assert offset == 20_000
            assert patch(http, place, data[offset:], offset).status_code == 204
            assert begin(http, task, data).json()["verdict"] == "accepted"
    finally:
        process.kill()
        process.communicate()


class Open(io.BytesIO):
    """What `tuspy` reads: it closes what it reads again later, and leaves open what it opens itself."""

    def close(self) -> None:
        pass


class Foreign:
    """A worker that sends its update with `tuspy`, a tus client that others wrote (tus.io lists it)."""

    def __init__(self, room: Any, folder: Path) -> None:
        pytest.importorskip("tusclient", reason="needs: pip install tuspy")
        self._room, self._folder = room, folder
        self.file = folder / "update"

    @contextmanager
    def uploader(self, http: httpx2.Client, task: Any, *, chunk: int, **changes: str) -> Iterator[Any]:
        """From the file on disk and what an earlier one has noted there: nothing is kept in memory."""
        from tusclient.client import TusClient
        from tusclient.storage.filestorage import FileStorage

        sha256 = hashlib.sha256(self.file.read_bytes()).hexdigest()
        about = {"task": str(task["task"]), "fence": task["fence"], "sha256": sha256, **changes}
        tus = TusClient(
            f"{self._room.url}/gradient", headers={"Authorization": http.headers["Authorization"]}
        )
        notes = FileStorage(str(self._folder / "uploads.json"))
        try:
            yield tus.uploader(
                file_stream=Open(self.file.read_bytes()),
                chunk_size=chunk,
                metadata=about,
                upload_checksum=True,
                store_url=True,
                url_storage=notes,
            )
        finally:
            notes.close()


def test_a_client_of_others_uploads_with_a_workers_token(served: Any, tmp_path: Path) -> None:
    """Our own worker and our own routes may be wrong in the same way. Catches headers that only ours read."""
    foreign = Foreign(served, tmp_path)
    with leased(served) as (http, task, data):
        foreign.file.write_bytes(data)
        with foreign.uploader(http, task, chunk=50_000) as uploader:
            uploader.upload()
            assert uploader.offset == len(data) > 4 * 50_000
        assert begin(http, task, data).json()["verdict"] == "accepted"
        assert accepted(served) == 1


def test_a_client_of_others_hears_refusals(served: Any, tmp_path: Path) -> None:
    """A lease of nobody, and a false token: catches an upload that begins without either."""
    foreign = Foreign(served, tmp_path)
    from tusclient.exceptions import TusCommunicationError

    with leased(served) as (http, task, data):
        foreign.file.write_bytes(data)
        for changes, token, status in (({"fence": "0" * 32}, None, 409), ({}, "Bearer false", 401)):
            http.headers["Authorization"] = token or http.headers["Authorization"]
            with (
                pytest.raises(TusCommunicationError) as caught,
                foreign.uploader(http, task, chunk=50_000, **changes) as uploader,
            ):
                uploader.upload()
            assert caught.value.status_code == status
        assert accepted(served) == 0


@pytest.mark.process
def test_a_client_of_others_goes_on_after_both_sides_were_killed(room: Any, tmp_path: Path) -> None:
    """kill -9 of the coordinator between two chunks, and a client that starts anew from its notes on disk."""
    room.make_run(codec="fp32-v1")
    room.secret("w1")
    room.c.close()
    foreign = Foreign(room, tmp_path)
    process, room.url = process_of(room)
    try:
        with room.http("w1") as http:
            join(http)
            task = http.get("/work").json()
            data = frame(room.run, task)
            foreign.file.write_bytes(data)
            with foreign.uploader(http, task, chunk=30_000) as first:
                first.upload_chunk()
                first.upload_chunk()
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=20)
        process, room.url = process_of(room, int(room.url.rpartition(":")[2]))
        with room.http("w1") as http:
            with foreign.uploader(http, task, chunk=30_000) as again:
                assert (again.offset, again.url) == (60_000, first.url)
                again.upload()
            assert begin(http, task, data).json()["verdict"] == "accepted"
        assert accepted(room) == 1
    finally:
        process.kill()
        process.communicate()
