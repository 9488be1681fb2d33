"""SEC-38 to SEC-42 and SEC-45: ids, sizes, encodings, ranges, full disks."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import shutil
import socket
import time
import tracemalloc

import numpy as np
import pytest
from sqlalchemy import func, select

from bithaul.coordinator.api import ranges
from bithaul.coordinator.api.guard import MAX_JSON_BYTES, depth
from bithaul.coordinator.api.problems import RangeNotSatisfiable
from bithaul.coordinator.blobs.store import BlobRef
from bithaul.coordinator.context import CrashPoints
from bithaul.coordinator.database import runs
from bithaul.coordinator.database.tables import reports
from bithaul.coordinator.identity.clients import rotate_client
from bithaul.errors import OutOfDisk
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import write_frame
from bithaul.exchange.messages import WORKER_SCOPE, Receipt, ReportHeader, Verdict
from bithaul.rounds.sizing import FIRST_SPEED, LONGEST_LEASE

OCTETS = {"Content-Type": "application/octet-stream"}


def register(site, client_id="w1", *, speed=50.0):
    """A registered worker with a lease: its headers and its task."""
    headers = site.worker(client_id)
    message = {"codecs": ["int8-block-v1"], "weight_formats": ["weights-v1"]}
    run = site.http.post("/register", json=message, headers=headers).json()["run"]
    capabilities = {
        "device": "cpu",
        "threads": 1,
        "memory_bytes": 1,
        "tokens_per_second": speed,
        "software": "1",
    }
    ready = {**message, "layout_hash": run["layout_hash"], "capabilities": capabilities}
    answer = site.http.post("/register", json=ready, headers=headers)
    assert answer.status_code == 200, answer.status_code
    task = site.http.get("/work", headers=headers)
    assert task.status_code == 200, task.text
    return headers, task.json()


def path_of(task):
    return f"/gradient?task={task['task']}&fence={task['fence']}"


def nothing_kept(site):
    """No file in the incoming area and no row of a report."""
    with site.c.database.read() as connection:
        rows = connection.execute(select(func.count()).select_from(reports)).scalar_one()
    return rows == 0 and not [path for path in site.c.settings.incoming_folder.rglob("*") if path.is_file()]


def raw(site, head, body=b"", *, close=False):
    """Send bytes as they are; return what comes back until the connection closes or 5 s pass."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        if close:
            connection.shutdown(socket.SHUT_WR)
            return b""
        answer = b""
        while (piece := connection.recv(65_536)) and b"\r\n\r\n" not in answer:
            answer += piece
            if b"\r\n\r\n" in answer:
                break
        return answer


HOSTILE = [
    "..", ".", "%2e%2e", "..%2f..%2fcoordinator.db", "%2e%2e%2fsecrets%2fpepper", "/etc/passwd",
    "%2fetc%2fpasswd",
    "C:%5cwindows", "%5c%5chost%5cshare", "a%00b", "%00", "CON", "con.", "train-00000.", "train-00000%20",
    "a" * 300, "%D0%B0bc", "train%2F", "TRAIN-00000", "-x", "_x", "train-00000%0a", "coordinator.db", "con",
]  # fmt: skip


def test_sec_38_ids_are_looked_up_never_joined(run_site):
    headers, admin = run_site.worker(), run_site.admin()
    for shard in HOSTILE:
        for path in (f"/corpus/{shard}", f"/corpus/{shard}/index", f"/weights/{shard}"):
            response = run_site.http.get(path, headers=headers)
            assert response.status_code in (404, 422), path
            assert response.headers["content-type"] == "application/problem+json"
        response = run_site.http.post(f"/api/workers/{shard}/drain", json={"on": True}, headers=admin)
        assert response.status_code in (404, 422, 405), shard


def test_sec_38_versions_are_numbers_that_exist(run_site):
    headers = run_site.worker()
    for version in ["0", "-1", "2", "1e0", "9" * 30, "1.0", "0x1", "１", "+1 "]:
        assert run_site.http.get(f"/weights/{version}", headers=headers).status_code in (404, 422), version


def test_sec_38_a_symlink_in_the_store_is_not_followed(run_site):
    headers = run_site.worker()
    current = run_site.http.get("/weights/current", headers=headers).json()
    blob = run_site.c.blobs.get(current["sha256"]).path
    elsewhere = run_site.directory / "elsewhere"
    shutil.move(blob, elsewhere)
    blob.symlink_to(elsewhere)
    assert run_site.http.get("/weights/1", headers=headers).status_code in (404, 503)


def test_sec_39_too_large_is_refused_before_the_body(run_site):
    headers, task = register(run_site)
    head = (
        f"POST {path_of(task)} HTTP/1.1\nHost: 127.0.0.1\nAuthorization: {headers['Authorization']}\n"
        "Content-Type: application/octet-stream\nExpect: 100-continue\nContent-Length: {length}\n\n"
    )
    for length in (10**9, 10**18, 70_000_000):
        answer = raw(run_site, head.replace("{length}", str(length)))
        assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
        assert b"100 Continue" not in answer
    assert nothing_kept(run_site)


def test_sec_39_missing_and_malformed_lengths(run_site):
    headers, task = register(run_site)
    chunked = run_site.http.post(path_of(task), content=iter([b"x"]), headers={**headers, **OCTETS})
    assert (chunked.status_code, chunked.json()["code"]) == (411, "length_required")
    for length in ("-1", "1_0", "0x10", "9" * 30, "1, 2", "+5", ""):
        answer = raw(
            run_site,
            f"POST {path_of(task)} HTTP/1.1\nHost: 127.0.0.1\nAuthorization: {headers['Authorization']}\n"
            f"Content-Type: application/octet-stream\nContent-Length: {length}\n\n",
        )
        assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 411", b"HTTP/1.1 413"), (length, answer[:100])
    assert nothing_kept(run_site)


def test_sec_39_wrong_length_for_the_layout(run_site):
    """Wrong result: a body that cannot be an update of this layout is read and stored."""
    headers, task = register(run_site)
    for length in (0, 1, 100):
        response = run_site.http.post(path_of(task), content=b"x" * length, headers={**headers, **OCTETS})
        assert response.status_code in (400, 422), response.text
    assert nothing_kept(run_site)


def test_sec_39_a_broken_upload_leaves_nothing(run_site):
    headers, task = register(run_site)
    size = 3000
    head = (
        f"POST {path_of(task)} HTTP/1.1\nHost: 127.0.0.1\nAuthorization: {headers['Authorization']}\n"
        f"Content-Type: application/octet-stream\nContent-Length: {size}\n\n"
    )
    raw(run_site, head, b"x" * 1500, close=True)
    eventually(lambda: nothing_kept(run_site))
    again = run_site.http.get("/work", headers=headers).json()
    assert again["fence"] == task["fence"]  # the lease is still good: the worker sends it again


def test_sec_39_memory_does_not_grow_with_the_transfer(run_site, monkeypatch):
    """Wrong result: a blob is held whole, on the way in or on the way out."""
    size = 64 << 20
    headers, task = register(run_site)
    big = run_site.directory / "big"
    with big.open("wb") as file:
        file.truncate(size)
    received = []

    def submit(c, worker, *, task, fence, upload, still_allowed):
        received.append(upload.path.stat().st_size)
        upload.path.unlink()
        return Receipt(task=task, fence=fence, verdict=Verdict.ACCEPTED)

    monkeypatch.setattr(
        "bithaul.coordinator.api.blobs.weights_blob", lambda c, v: BlobRef(big, "a" * 64, size)
    )
    monkeypatch.setattr("bithaul.coordinator.api.gradient.begin_upload", lambda *args, **kwargs: None)
    monkeypatch.setattr("bithaul.coordinator.api.gradient.submit_gradient", submit)
    piece = bytes(1 << 20)
    tracemalloc.start()
    try:
        with run_site.http.stream("GET", "/weights/1", headers=headers) as response:
            assert sum(len(part) for part in response.iter_raw(1 << 20)) == size
        sent = {**headers, **OCTETS, "Content-Length": str(size)}
        body = (piece for _ in range(size >> 20))
        assert run_site.http.post(path_of(task), content=body, headers=sent).status_code == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == [size]
    assert peak < size / 4


def eventually(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError


def test_sec_04_rotation_during_an_upload(run_site):
    """Wrong result: an update that began under a revoked credential is applied."""
    headers, task = register(run_site)
    with socket.create_connection(("127.0.0.1", run_site.port), timeout=10) as connection:
        head = (
            f"POST {path_of(task)} HTTP/1.1\nHost: 127.0.0.1\nAuthorization: {headers['Authorization']}\n"
            "Content-Type: application/octet-stream\nContent-Length: 4000\nExpect: 100-continue\n\n"
        )
        connection.sendall(head.replace("\n", "\r\n").encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b"x" * 2000)
        rotate_client(run_site.c, "w1")
        connection.sendall(b"x" * 2000)
        assert connection.recv(1000).startswith(b"HTTP/1.1 401")
    assert nothing_kept(run_site)


def update_of(site, task):
    """A good update of this task."""
    with site.c.database.read() as connection:
        run = runs.get_run(connection)
    payload = bytes(codec_named(run.codec).encode(np.full(run.layout.size, 1e-3, np.float32), run.layout))
    header = ReportHeader(
        codec=run.codec,
        run=run.name,
        layout_hash=run.layout_hash,
        base_version=task["base_version"],
        task=task["task"],
        fence=task["fence"],
        examples=task["examples"],
        tokens=task["examples"],
        steps=1,
        seconds=1.0,
        loss_first=3.0,
        loss_last=2.0,
        loss_mean=2.5,
        payload_size=len(payload),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
    )
    stream = io.BytesIO()
    write_frame(stream, header, payload)
    return stream.getvalue()


def begin(site, headers, task, length):
    """A resumable upload."""
    pairs = {"task": str(task["task"]), "fence": task["fence"]}
    told = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in pairs.items())
    sent = {"Tus-Resumable": "1.0.0", "Upload-Metadata": told, "Upload-Length": str(length)}
    return site.http.post("/gradient", headers={**headers, **sent})


@pytest.mark.parametrize("way", ["whole", "resumable"])
def test_sec_04_rotation_while_the_update_is_judged(run_site, way):
    """Wrong result: the credential is asked before an update is judged, which takes a while, only."""
    site = run_site
    headers, task = register(site)
    update = update_of(site, task)
    at_gate = []

    def hit(name):
        if name == "submit.gated" and not at_gate:
            at_gate.append(name)
            site.secrets["w1"] = rotate_client(site.c, "w1")

    object.__setattr__(site.c, "crash_points", CrashPoints(hit))
    if way == "whole":
        answer = site.http.post(path_of(task), content=update, headers={**headers, **OCTETS})
    else:
        place = begin(site, headers, task, len(update)).headers["location"]
        sent = {**headers, "Tus-Resumable": "1.0.0", "Upload-Offset": "0"}
        sent["Content-Type"] = "application/offset+octet-stream"
        answer = site.http.patch(place, content=update, headers=sent)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert at_gate
    assert nothing_kept(site)
    fresh = site.worker("w1")
    again = site.http.post(path_of(task), content=update, headers={**fresh, **OCTETS})
    assert (again.status_code, again.json()["verdict"]) == (200, "accepted"), (
        "the rotation was the only reason"
    )


def test_sec_45_one_worker_does_not_take_the_room_of_all(run_site, monkeypatch):
    """Wrong result: uploads begun for a hundred leases, and given nothing, keep the disk from all others."""
    site = run_site
    headers, task = register(site)
    others, other_task = register(site, "w2")
    length = len(update_of(site, task))
    room = 6 * length + site.c.settings.disk_reserve_bytes
    monkeypatch.setattr(type(site.c.blobs), "free_bytes", lambda _: room)
    for _ in range(10):
        assert begin(site, headers, task, length).status_code in (201, 507)
        gone = {"task": task["task"], "fence": task["fence"], "outcome": "released"}
        assert site.http.post("/heartbeat", json=gone, headers=headers).status_code == 200
        task = site.http.get("/work", headers=headers).json()
    assert begin(site, others, other_task, length).status_code == 201
    kept = list(site.c.settings.uploads_folder.glob("*.upload"))
    assert len(kept) == 5


def test_sec_45_a_worker_sends_few_updates_at_once(run_site):
    """Wrong result: a thousand connections of one worker, each with a file that grows."""
    site = run_site
    headers, task = register(site)
    update = update_of(site, task)
    head = (
        f"POST {path_of(task)} HTTP/1.1\nHost: 127.0.0.1\nAuthorization: {headers['Authorization']}\n"
        f"Content-Type: application/octet-stream\nContent-Length: {len(update)}\n\n"
    )
    sent = head.replace("\n", "\r\n").encode() + update[:1000]
    with contextlib.ExitStack() as stack:
        lines = [
            stack.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=10))
            for _ in range(4)
        ]
        for line in lines:
            line.sendall(sent)
        eventually(lambda: len(list(site.c.settings.incoming_folder.glob("*.part"))) == 4)
        answer = site.http.post(path_of(task), content=update, headers={**headers, **OCTETS})
        assert (answer.status_code, answer.json()["code"]) == (503, "uploads_running")
        assert "retry-after" in answer.headers
        lines[0].sendall(update[1000:])
        assert lines[0].recv(4096).startswith(b"HTTP/1.1 200")
    eventually(lambda: not list(site.c.settings.incoming_folder.glob("*.part")))
    assert site.http.post(path_of(task), content=update, headers={**headers, **OCTETS}).status_code == 200


def test_sec_40_encoded_bodies_are_refused(run_site):
    headers, task = register(run_site)
    for encoding in ["gzip", "deflate", "br", "zstd", "identity, gzip", "x"]:
        sent = {**headers, **OCTETS, "Content-Encoding": encoding}
        response = run_site.http.post(path_of(task), content=b"x" * 3000, headers=sent)
        assert (response.status_code, response.json()["code"]) == (415, "unsupported_encoding")


def test_sec_39_a_checksum_beyond_ascii_is_a_400(run_site):
    """Found by atheris: such letters were a 500."""
    headers, task = register(run_site)
    pairs = {"task": str(task["task"]), "fence": task["fence"]}
    told = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in pairs.items())
    sent = {**headers, "Tus-Resumable": "1.0.0", "Upload-Metadata": told, "Upload-Length": "4000"}
    made = run_site.http.post("/gradient", headers=sent)
    assert made.status_code == 201, made.text
    piece = {**headers, "Tus-Resumable": "1.0.0", "Upload-Offset": "0"}
    piece |= {"Content-Type": "application/offset+octet-stream", "Upload-Checksum": b"sha256 \xe3\xef"}
    answer = run_site.http.patch(made.headers["location"], content=b"x" * 10, headers=piece)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def zstd_bomb(blocks):
    """A zstd frame (RFC 8878) of run-length blocks: each unpacks four bytes to 128 KiB."""
    size = 128 * 2**10
    block = (size << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (size << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd" + b"\x00\x58" + block * (blocks - 1) + last


def test_sec_40_a_bomb_is_refused_unread_on_every_route(run_site):
    """Wrong result: 320 KB become 10 GB. No route unpacks anything, so none waits for such a body either.

    Only the head is sent: an answer that comes was given before the body.
    """
    bomb = zstd_bomb(80_000)
    assert len(bomb) < 2**20
    seen = 0
    for operation in run_site.operations():
        if operation.method == "GET":
            continue
        sent = run_site.worker() if operation.scope == WORKER_SCOPE else run_site.admin()
        head = [f"{operation.method} {operation.path} HTTP/1.1", f"Host: 127.0.0.1:{run_site.port}"]
        head += [f"{name}: {value}" for name, value in sent.items()]
        head += ["Content-Type: application/octet-stream", "Content-Encoding: zstd"]
        head += [f"Content-Length: {len(bomb)}", "", ""]
        with socket.create_connection(("127.0.0.1", run_site.port), timeout=5) as line:
            line.sendall("\r\n".join(head).encode())
            assert line.recv(4096).startswith(b"HTTP/1.1 415 "), operation
        seen += 1
    assert seen > 20
    answer = run_site.http.post(
        "/logs", content=bomb, headers={**run_site.worker(), "Content-Encoding": "zstd"}
    )
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")


def test_sec_41_hostile_json_is_bounded(run_site):
    headers = run_site.worker()

    def status(body, media_type="application/json"):
        started = time.perf_counter()
        response = run_site.http.post("/logs", content=body, headers={**headers, "content-type": media_type})
        assert time.perf_counter() - started < 2
        assert response.headers["content-type"] == "application/problem+json"
        return response.status_code

    deep = b'{"entries":' * 10_000
    keys = b"{" + b",".join(b'"k%d":1' % i for i in range(80_000)) + b"}"
    assert status(deep) == 400
    assert status(b"[" * 10_000 + b"]" * 10_000) == 400
    assert status(keys) == 400  # 80,000 error messages would take a second and more
    assert status(b'{"entries": [], "dropped": 0, "x": "' + b":" * 50_000 + b'"}') == 422
    assert status(b'"' * MAX_JSON_BYTES) in (400, 422)
    assert status(b'"\\' * (MAX_JSON_BYTES // 2)) in (400, 422)
    assert status(b'{"dropped": ' + b"9" * 100_000 + b', "entries": []}') in (400, 422)
    assert status(b'{"dropped": 1e999, "entries": []}') in (400, 422)
    assert status(b'{"entries": [{"time": NaN, "level": "info", "event": "x"}]}') in (400, 422)
    assert status(b" " * (MAX_JSON_BYTES + 1)) == 413
    assert status(b"\xff\xfe") in (400, 422)
    assert status(b"{}", "text/plain") == 415
    assert status(b"{}", "") == 415


@pytest.mark.parametrize("speed", [1e15, 1e-10, 5e-324])
def test_sec_47_a_number_does_not_lease_the_rest_of_a_run(run_site, speed):
    """Wrong results: all that is left for a worker that says it is fast; a lease of ages; a 500."""
    with run_site.c.database.write() as connection:
        runs.update_run(connection, 1, budget_tokens=10**12)
        run = runs.get_run(connection)
    _, task = register(run_site, speed=speed)
    tokens = task["examples"] * run.tokens_per_example
    assert tokens <= 2 * run.task_seconds * FIRST_SPEED + run.batch_examples * run.tokens_per_example
    assert task["deadline_seconds"] <= LONGEST_LEASE


def test_sec_47_a_speed_that_adds_up_to_infinity_is_refused(run_site):
    """Wrong result: pages and plans with an infinite sum."""
    with pytest.raises(AssertionError, match="422"):
        register(run_site, speed=1e308)


@pytest.mark.parametrize("number", [2**63, 10**30, -(10**30)])
def test_sec_41_numbers_beyond_every_database_are_refused(run_site, number):
    """Wrong result: a 500, and a traceback in the log, for each heartbeat of a worker that says so."""
    headers, task = register(run_site)
    mine = {"task": task["task"], "fence": task["fence"]}
    able = {"device": "cpu", "threads": 1, "tokens_per_second": 50.0, "software": "1", "memory_bytes": number}
    said = {"codecs": ["int8-block-v1"], "weight_formats": ["weights-v1"], "capabilities": able}
    for path, message in (
        ("/heartbeat", {**mine, "task": number}),
        ("/heartbeat", {**mine, "tokens": number}),
        ("/heartbeat", {"tokens": number}),
        ("/logs", {"entries": [], "dropped": number}),
        ("/register", said),
    ):
        assert run_site.http.post(path, json=message, headers=headers).status_code == 422, (path, message)


def test_sec_41_depth_counts_brackets_outside_of_strings():
    assert depth(b"[" * 33) == 33
    assert depth(b'"' + b"[" * 100 + b'"') == 0
    assert depth(b'{"a": "\\"' + b"[" * 100 + b'", "b": [' + b"[]," * 40 + b"0]}") == 3


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", [(0, 10)]),
        ("BYTES=0-0", [(0, 1)]),
        ("bytes=90-", [(90, 100)]),
        ("bytes=-5", [(95, 100)]),
        ("bytes=-500", [(0, 100)]),
        ("bytes=50-5000", [(50, 100)]),
        ("bytes=0-9,5-20,40-41", [(0, 21), (40, 42)]),
        ("bytes=40-41, 0-9", [(0, 10), (40, 42)]),
        ("bytes=0-9,200-300", [(0, 10)]),
        ("bytes=9-5", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0-9,x", None),
        ("bytes=0-1-2", None),
        ("items=0-9", None),
        ("0-9", None),
        ("bytes=１-２", None),
        ("bytes=100-", "416"),
        ("bytes=-0", "416"),
        ("bytes=" + "0-1," * 16 + "0-1", "416"),
        ("bytes=" + "0-," * 5000, "416"),
    ],
)
def test_sec_42_range_header(header, expected):
    if expected == "416":
        with pytest.raises(RangeNotSatisfiable):
            ranges.parse(header, 100)
    else:
        assert ranges.parse(header, 100) == expected
    for any_header in (header, "bytes=0-", "bytes=-1"):
        with contextlib.suppress(RangeNotSatisfiable):
            assert ranges.parse(any_header, 0) is None


def test_sec_42_ranges_over_http_are_the_right_bytes(run_site):
    headers = run_site.worker()
    get = run_site.http.get
    whole = get("/weights/1", headers=headers)
    data = whole.content
    digest = hashlib.sha256(data).hexdigest()
    etag = f'"{digest}"'
    assert get("/weights/current", headers=headers).json() == {
        "version": 1,
        "sha256": digest,
        "size": len(data),
    }
    assert whole.headers["etag"] == etag
    assert "immutable" in whole.headers["cache-control"]
    assert whole.headers["accept-ranges"] == "bytes"

    def ask(value, **more):
        return get("/weights/1", headers={**headers, "Range": value, **more})

    part = ask("bytes=10-19")
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
    assert ask("bytes=-7").content == data[-7:]
    assert ask(f"bytes=10-19,{len(data) - 3}-").status_code == 206
    multi = ask("bytes=0-3,8-9")
    assert multi.headers["content-type"].startswith("multipart/byteranges")
    assert data[0:4] in multi.content
    assert data[8:10] in multi.content
    beyond = ask(f"bytes={len(data)}-")
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(data)}"
    assert ask("bytes=" + "0-0," * 200 + "0-0").status_code == 416
    for ignored in ("bytes=9-1", "lines=1-2", "bytes=x"):
        assert (ask(ignored).status_code, ask(ignored).content) == (200, data)
    assert ask("bytes=0-3", **{"If-Range": etag}).status_code == 206
    for stale in ('"other"', f"W/{etag}", "Wed, 21 Oct 2026 07:28:00 GMT"):
        assert ask("bytes=0-3", **{"If-Range": stale}).content == data
        assert ask(f"bytes={len(data)}-", **{"If-Range": stale}).status_code == 200
    for match in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        cached = get("/weights/1", headers={**headers, "If-None-Match": match})
        assert (cached.status_code, cached.content, cached.headers["etag"]) == (304, b"", etag)
    assert get("/weights/1", headers={**headers, "If-None-Match": '"x"'}).status_code == 200
    head = run_site.http.head("/weights/1", headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["content-length"], head.headers["etag"]) == (str(len(data)), etag)


def test_sec_45_disk_full_is_507_without_file_or_row(run_site, monkeypatch):
    """A store whose disk fills up in the middle stands in for a full disk."""
    headers, task = register(run_site)
    size = len(run_site.http.get("/weights/1", headers=headers).content)

    def send():
        return run_site.http.post(
            path_of(task), content=b"x" * (size // 4 + 600), headers={**headers, **OCTETS}
        )

    monkeypatch.setattr(type(run_site.c.blobs), "free_bytes", lambda self: 10)
    refused = send()
    assert (refused.status_code, refused.json()["code"]) == (507, "out_of_disk")
    monkeypatch.undo()
    incoming = run_site.c.blobs.receive("probe")
    incoming.abort()

    def full(self, *unused):
        raise OutOfDisk("The disk is full.")

    for method in ("write", "finish"):
        monkeypatch.setattr(type(incoming), method, full)
        refused = send()
        assert (refused.status_code, refused.json()["code"]) == (507, "out_of_disk")
        monkeypatch.undo()
        assert nothing_kept(run_site)
    assert run_site.http.get("/work", headers=headers).json()["fence"] == task["fence"]
