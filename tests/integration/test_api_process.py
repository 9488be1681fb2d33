"""`bithaul coordinator` as a process: the whole worker API, stop, restart, kill, refusals to start."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pytest

from bithaul.cli import main
from bithaul.coordinator.commands.create_run import CreateRun, create_run
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.database import ledger, runs, work
from bithaul.coordinator.database.tables import leases, reports
from bithaul.coordinator.settings import load_settings
from bithaul.corpus.build import build_corpus
from bithaul.corpus.example import Example
from bithaul.exchange.codecs import codec_named
from bithaul.exchange.frame import write_frame
from bithaul.exchange.messages import ReportHeader
from bithaul.exchange.weights import read_weights
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of

pytestmark = pytest.mark.process


def command(*arguments):
    return [sys.executable, "-m", "bithaul", *arguments]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments):
    """The command in this process: as `bithaul` runs it, without the seconds of a new interpreter."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.run(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            for name, handler in handlers.items():
                signal.signal(name, handler)
    return Done(code, out.getvalue(), err.getvalue())


class Process:
    """One `bithaul coordinator --json`, ready to serve."""

    def __init__(self, directory, port=0):
        self.popen = subprocess.Popen(
            command("coordinator", "--dir", str(directory), "--port", str(port), "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "FASTAPI_OTEL_AUTO_CONFIGURE": "1"},  # must not switch anything on
        )
        line = self.popen.stdout.readline()
        assert line, self.popen.communicate()[1]
        self.ready = json.loads(line)
        self.url = self.ready["url"]
        self.http = httpx2.Client(base_url=self.url, timeout=20, trust_env=False)

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def end(self, name):
        """Exit code and standard error after a signal."""
        self.http.close()
        self.popen.send_signal(name)
        _, err = self.popen.communicate(timeout=30)
        return self.popen.returncode, err


both_databases = pytest.mark.parametrize(
    "directory", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


@pytest.fixture
def directory(tmp_path, request) -> Path:
    """A run folder with a tiny run, no process yet."""
    folder = tmp_path / "run"
    folder.mkdir()
    if getattr(request, "param", "sqlite") == "postgres":
        url = request.getfixturevalue("postgres").fresh()
        (folder / "bithaul.toml").write_text(f'database_url = "{url}"\n')
    words = ["stop", "fuel", "dallas", "route", "eta", "load", "break", "north"]
    examples = [Example(f"{a} {b}", "navigate", (("city", a),)) for a in words for b in words]
    manifest = build_corpus(
        folder / "corpus",
        examples[:56],
        examples[56:],
        max_tokens=65,
        seed=1,
        min_frequency=1,
        shard_examples=14,
    )
    config = ModelConfig(
        vocab_size=manifest.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        context_length=64,
    )
    c = open_coordinator(load_settings(folder))
    wanted = CreateRun(
        run="test", model=config, recipe={}, corpus_dir=folder / "corpus", budget_tokens=1e6, codec="fp32-v1"
    )
    create_run(c, wanted)
    c.close()
    return folder


@pytest.fixture
def start(directory):
    started = []

    def starter(**options):
        started.append(Process(directory, **options))
        return started[-1]

    yield starter
    for process in started:
        process.http.close()
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate()


def key(directory, name, *options):
    done = run("keys", "create", name, "--dir", str(directory), "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["secret"]


def bearer(http, name, secret):
    response = http.post("/connect/token", data={"grant_type": "client_credentials"}, auth=(name, secret))
    assert response.status_code == 200, response.text
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


def join(http, headers):
    """Register both times; the run."""
    message = {"codecs": ["fp32-v1"], "weight_formats": ["weights-v1"]}
    description = http.post("/register", json=message, headers=headers).json()["run"]
    able = {"device": "cpu", "threads": 1, "memory_bytes": 1, "tokens_per_second": 50.0, "software": "1"}
    ready = {**message, "layout_hash": description["layout_hash"], "capabilities": able}
    assert http.post("/register", json=ready, headers=headers).status_code == 200
    return description


def report(description, task, step):
    """A frame with the pseudo-gradient `step` in every coordinate."""
    layout = layout_of(ModelConfig(**description["model"]))
    payload = codec_named("fp32-v1").encode(np.full(layout.size, step, np.float32), layout)
    header = ReportHeader(
        codec="fp32-v1",
        run=description["run"],
        layout_hash=description["layout_hash"],
        base_version=task["base_version"],
        task=task["task"],
        fence=task["fence"],
        examples=task["examples"],
        tokens=task["examples"] * 10,
        steps=1,
        seconds=0.5,
        loss_first=5.0,
        loss_last=4.0,
        loss_mean=4.5,
        payload_size=len(payload),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
    )
    stream = io.BytesIO()
    write_frame(stream, header, payload)
    return layout.size, stream.getvalue()


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def weights(http, headers, version, count):
    response = http.get(f"/weights/{version}", headers=headers)
    assert hashlib.sha256(response.content).hexdigest() == response.headers["etag"].strip('"')
    return np.array(read_weights(response.content, expected_count=count).vector)


@both_databases
def test_a_worker_s_whole_day_over_http(directory, start):
    """Wrong results: any route that does not fit the next one; an update merged with the wrong sign."""
    secret = key(directory, "w1")
    admin_secret = key(directory, "operator", "--admin")
    process = start()
    http = process.http
    assert (directory / "coordinator.url").read_text().strip() == process.url
    health = http.get("/health")
    assert health.status_code == 200, health.text
    worker, admin = bearer(http, "w1", secret), bearer(http, "operator", admin_secret)

    description = join(http, worker)
    shard = description["shards"][0]
    data = http.get(f"/corpus/{shard['id']}", headers=worker)
    assert (len(data.content), hashlib.sha256(data.content).hexdigest()) == (shard["size"], shard["sha256"])
    index = http.get(f"/corpus/{shard['id']}/index", headers=worker)
    assert hashlib.sha256(index.content).hexdigest() == shard["index_sha256"]

    work = http.get("/work", headers=worker)
    assert (work.status_code, work.headers["bithaul-run-state"]) == (200, "running")
    task = work.json()
    assert http.get("/work", headers=worker).json()["fence"] == task["fence"]
    beat = {"task": task["task"], "fence": task["fence"], "tokens": 10, "activity": "training"}
    assert http.post("/heartbeat", json=beat, headers=worker).json()["lease_open"] is True

    count, body = report(description, task, 0.25)
    before = weights(http, worker, 1, count)
    path = f"/gradient?task={task['task']}&fence={task['fence']}"
    octets = {**worker, "Content-Type": "application/octet-stream"}
    broken = bytearray(body)
    broken[-1] ^= 1
    damaged = http.post(path, content=bytes(broken), headers=octets)
    assert damaged.status_code == 422, damaged.text
    task = http.get("/work", headers=worker).json()
    path = f"/gradient?task={task['task']}&fence={task['fence']}"
    _, body = report(description, task, 0.25)
    receipt = http.post(path, content=body, headers=octets)
    assert receipt.status_code == 200, receipt.text
    assert receipt.json()["verdict"] == "accepted", receipt.text
    again = http.post(path, content=body, headers=octets)
    assert again.json() == receipt.json()
    current = until(lambda: (c := http.get("/weights/current", headers=worker).json())["version"] == 2 and c)
    after = weights(http, worker, current["version"], count)
    np.testing.assert_allclose(after, before - 0.25, atol=1e-6)

    entry = {"time": 1.0, "level": "info", "event": "hello", "fields": {"n": 1}}
    assert http.post("/logs", json={"entries": [entry]}, headers=worker).status_code == 204
    progress = http.get("/api/progress", headers=admin).json()
    assert [w["name"] for w in progress["workers"]] == ["w1"]
    assert http.post("/api/run/pause", headers=admin).json() == {"state": "paused"}
    idle = http.get("/work", headers=worker)
    assert (idle.status_code, idle.headers["bithaul-run-state"]) == (204, "paused")
    assert float(idle.headers["retry-after"]) > 0
    assert http.post("/api/run/resume", headers=admin).json()["state"] in ("ready", "running")
    assert http.post("/api/workers/w1/drain", json={"on": True}, headers=admin).status_code == 204
    assert http.post("/heartbeat", json={}, headers=worker).json()["drain"] is True
    assert http.get("/work", headers=worker).status_code == 204
    assert http.get("/metrics", headers=admin).status_code == 200
    assert http.get("/status").json()["version"] == 2

    pinned = http.post("/api/workers/w1/pin", headers=admin).json()
    assert (pinned["standing"], pinned["weight"]) == ("steady", 1.0)
    aside = http.post("/api/workers/w1/set-aside", json={"reason": "too hot"}, headers=admin).json()
    assert aside == {"worker": "w1", "standing": "set aside", "weight": 0.0, "why": "too hot"}
    assert http.post("/api/workers/w1/restore", headers=admin).json()["weight"] == 0.5
    assert http.post("/api/workers/w1/pin", headers=worker).status_code == 403
    assert http.post("/api/workers/w9/pin", headers=admin).status_code == 404
    back = http.post("/api/run/rollback", json={"version": 1}, headers=admin)
    assert back.status_code == 200, back.text
    assert (back.json()["version"], back.json()["lineage"]) == (3, 2)
    np.testing.assert_array_equal(weights(http, worker, 3, count), before)
    refused = http.post("/api/run/rollback", json={"version": 2}, headers=admin)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    shown = http.get("/api/run", headers=admin).json()
    assert [v["in_force"] for v in shown["versions"]] == [True, False, True]

    code, err = process.end(signal.SIGTERM)
    assert (code, "Traceback" in err) == (0, False), err
    assert not (directory / "coordinator.url").exists()


@both_databases
def test_the_queue_over_http(directory, start):
    """Wrong results: a preview that seeds, a mark that binds nothing, a kick of a worker that gets on."""
    secret, admin_secret = key(directory, "w1"), key(directory, "operator", "--admin")
    process = start()
    http = process.http
    worker, admin = bearer(http, "w1", secret), bearer(http, "operator", admin_secret)
    join(http, worker)
    ask = {"tasks": 3, "examples": 4}
    preview = http.get("/api/tasks/seedings/preview", params=ask, headers=admin).json()
    assert (preview["problems"], preview["first"], preview["last"]) == ([], 0, 11)
    assert http.get("/api/tasks/seedings", headers=admin).json()["rows"] == []
    made = http.post("/api/tasks/seedings", json={**ask, "mark": preview["mark"]}, headers=admin)
    assert (made.status_code, made.json()["last"]) == (201, 11)
    again = http.post("/api/tasks/seedings", json={**ask, "mark": preview["mark"]}, headers=admin)
    assert (again.status_code, again.json()["code"]) == (409, "queue_moved")
    many = http.post("/api/tasks/seedings", json={"tasks": 10_001, "examples": 4}, headers=admin)
    assert (many.status_code, many.json()["code"]) == (422, "cannot_seed")
    task = http.get("/work", headers=worker).json()
    assert task["examples"] == 4
    path = f"/api/tasks/seedings/{made.json()['seeding']}/withdraw"
    assert http.post(path, headers=worker).status_code == 403
    done = http.post(path, headers=admin).json()
    assert (done["withdrawn"], done["taken"], done["examples"]) == (2, 1, 8)
    assert http.post("/api/tasks/seedings/9/withdraw", headers=admin).json()["code"] == "unknown_seeding"
    assert http.get("/api/tasks/stuck", headers=admin).json()["rows"] == []
    kick = http.post(f"/api/tasks/{task['task']}/kick", headers=admin)
    assert (kick.status_code, kick.json()["code"]) == (409, "task_not_stuck")
    assert http.post("/api/tasks/stuck/kick", headers=admin).json()["code"] == "nothing_stuck"
    with (
        contextlib.closing(open_coordinator(load_settings(directory))) as c,
        c.database.write() as connection,
    ):
        connection.execute(leases.update().values(granted_at=leases.c.granted_at - 3600.0))
    kick = http.post("/api/tasks/stuck/kick", headers=admin).json()
    assert [(k["task"], k["worker"]) for k in kick["tasks"]] == [(task["task"], "w1")]
    beat = {"task": task["task"], "fence": task["fence"], "tokens": 10, "activity": "training"}
    assert http.post("/heartbeat", json=beat, headers=worker).json()["lease_open"] is False
    rows = http.get("/api/audit", headers=admin).json()["rows"]
    assert [row["action"] for row in rows if row["actor"] == "operator"] == [
        "task.kick",
        "task.unseed",
        "task.seed",
    ]


@both_databases
def test_tokens_and_keys_survive_a_stop_and_a_kill(directory, start):
    """Wrong result: a new signing key or pepper at each start, so every worker is thrown out."""
    secret = key(directory, "w1")
    first = start()
    headers = bearer(first.http, "w1", secret)
    assert first.end(signal.SIGINT)[0] == 0
    second = start(port=first.port)
    assert second.http.get("/weights/current", headers=headers).status_code == 200
    second.end(signal.SIGKILL)
    third = start(port=first.port)
    assert third.http.get("/weights/current", headers=headers).status_code == 200
    bearer(third.http, "w1", secret)


@pytest.mark.postgres
@pytest.mark.parametrize("directory", ["postgres"], indirect=True)
def test_a_kill_of_coordinator_and_database_loses_nothing(directory, start, postgres):
    """SIGKILL to both in the middle. Wrong results: a receipt, a lease or a slice lost, or one used twice."""
    names = ["w1", "w2", "w3"]
    secrets = {name: key(directory, name) for name in names}
    process = start()
    receipts = {}
    for killed_first in ("coordinator", "database", "coordinator"):
        headers = {name: bearer(process.http, name, secrets[name]) for name in names}
        runs_seen = [join(process.http, headers[name]) for name in names]
        tasks = {name: _task(process.http, headers[name]) for name in names}
        sent = [_frame(runs_seen[0], tasks[name]) for name in names]
        receipts[sent[0]] = _send(process.http, headers["w1"], *sent[0])
        if killed_first == "database":
            postgres.kill()
        process.end(signal.SIGKILL)
        postgres.kill()
        postgres.start()
        process = start(port=process.port)
        for again, receipt in receipts.items():
            if again in sent:
                assert _send(process.http, headers["w1"], *again) == receipt
        for name, frame in zip(names[1:], sent[1:], strict=True):  # what was held at the kill is held still
            assert _task(process.http, headers[name])["fence"] == tasks[name]["fence"]
            receipts[frame] = _send(process.http, headers[name], *frame)
        assert {receipt["verdict"] for receipt in receipts.values()} == {"accepted"}
    with contextlib.closing(open_coordinator(load_settings(directory))) as c:
        until(lambda: not _unmerged(c))
        with c.database.read() as connection:
            rows = connection.execute(reports.select()).mappings().all()
            tasks = work.list_tasks(connection, rows[0]["run_id"])
    spans = sorted(span for task in tasks for span in task.positions)
    assert len(rows) == len(receipts) == 9
    assert {row["verdict"] for row in rows} == {"accepted"}
    assert all(row["merged_in"] for row in rows)
    assert [a.end for a in spans[:-1]] == [b.start for b in spans[1:]], "each position once, none left out"


def _frame(description, task):
    return f"/gradient?task={task['task']}&fence={task['fence']}", report(description, task, 0.25)[1]


def _send(http, headers, path, body):
    octets = {**headers, "Content-Type": "application/octet-stream"}
    return http.post(path, content=body, headers=octets).json()


def _task(http, headers):
    """The worker's task; it may have to wait for the round to end."""
    answer = until(lambda: (a := http.get("/work", headers=headers)).status_code == 200 and a)
    return answer.json()


def _unmerged(c):
    with c.database.read() as connection:
        return ledger.unmerged(connection, runs.get_run(connection).id)


@pytest.mark.postgres
@pytest.mark.parametrize("directory", ["postgres"], indirect=True)
def test_a_coordinator_outlives_its_database(directory, start, postgres):
    """Wrong results: a coordinator that must be restarted, a 500, a password in an answer or in its log."""
    secret = key(directory, "w1")
    process = start()
    worker = bearer(process.http, "w1", secret)
    description = join(process.http, worker)
    task = process.http.get("/work", headers=worker).json()
    key(directory, "w2")  # waits for the disk and takes the claim, which does not, along
    postgres.kill()
    try:
        answers = [
            process.http.get(path, headers=worker) for path in ("/work", "/health", "/weights/current")
        ]
        assert [answer.status_code for answer in answers] == [503] * 3
        assert answers[0].json()["code"] == "unavailable"
        assert float(answers[0].headers["retry-after"]) > 0
    finally:
        postgres.start()
    again = process.http.get("/work", headers=worker)
    assert (again.status_code, again.json().get("fence")) == (200, task["fence"]), again.text
    _, body = report(description, task, 0.25)
    path = f"/gradient?task={task['task']}&fence={task['fence']}"
    octets = {**worker, "Content-Type": "application/octet-stream"}
    assert process.http.post(path, content=body, headers=octets).json()["verdict"] == "accepted"
    until(lambda: process.http.get("/weights/current", headers=worker).json()["version"] == 2, seconds=40)
    until(lambda: process.http.get("/health").status_code == 200, seconds=40)
    code, err = process.end(signal.SIGTERM)
    assert code == 0
    for said in [err, *(answer.text for answer in answers)]:
        assert "pg-s3cret" not in said


@both_databases
def test_keys_by_command_act_on_a_running_coordinator(directory, start):
    secret = key(directory, "w1")
    process = start()
    headers = bearer(process.http, "w1", secret)
    listed = json.loads(run("keys", "list", "--dir", str(directory), "--json").stdout)
    told = [(client["id"], client["disabled"]) for client in listed]
    assert told == [("bithaul-admin", False), ("w1", False)]
    assert secret not in json.dumps(listed)
    rotated = json.loads(run("keys", "rotate", "w1", "--dir", str(directory), "--json").stdout)["secret"]
    assert process.http.get("/weights/current", headers=headers).status_code == 401
    headers = bearer(process.http, "w1", rotated)
    assert run("keys", "disable", "w1", "--dir", str(directory)).returncode == 0
    assert process.http.get("/weights/current", headers=headers).status_code == 401
    for arguments, code in ((["create", "w1"], 5), (["create", "Bad Name"], 2), (["rotate", "nobody"], 4)):
        done = run("keys", *arguments, "--dir", str(directory))
        assert (done.returncode, "Traceback" in done.stderr, len(done.stderr.strip().splitlines())) == (
            code,
            False,
            1,
        )


def test_a_port_in_use_is_one_clear_line(directory):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = run("coordinator", "--dir", str(directory), "--port", port)
        as_json = run("coordinator", "--dir", str(directory), "--port", port, "--json")
    assert (done.returncode, done.stdout) == (9, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert port in done.stderr
    assert "--port" in done.stderr
    assert json.loads(as_json.stdout)["error"] == "port_in_use"


def test_refusals_to_start_are_one_line(directory, start, tmp_path):
    start()
    cases = [
        (["--dir", str(directory), "--port", "0"], 5, "Another coordinator"),
        (["--dir", str(tmp_path / "nothing")], 2, "no run folder"),
        (["--dir", str(directory), "--port", "0", "--public-url", "http://8.8.8.8"], 2, "plain http"),
        (["--dir", str(directory), "--host", "203.0.113.1", "--port", "0"], 2, "--host"),
        (["--dir", str(directory), "--host", "0.0.0.0", "--port", "0"], 2, "public_url"),
    ]
    for arguments, code, text in cases:
        done = run("coordinator", *arguments)
        assert done.returncode == code, done.stderr
        assert text in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
