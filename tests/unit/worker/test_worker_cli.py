"""`bithaul worker` as people start it: clear refusals, real HTTP, real signals, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bithaul.cli.main import run


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def server(bench: Any) -> Iterator[str]:
    """The small coordinator on a real socket. `bench.cut_at` breaks the next weight download there."""
    lock = threading.Lock()
    bench.cut_at = None

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = httpx2.Request(
                self.command, f"http://x{self.path}", headers=dict(self.headers.items()), content=body
            )
            try:
                with lock:
                    response = bench.fake(request)
                    data = response.read()
            except httpx2.TransportError:
                self.close_connection = True
                return
            self.send_response(response.status_code)
            for name, value in response.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding"):
                    self.send_header(name, value)
            if response.status_code != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if bench.cut_at is not None and "/weights/" in self.path:
                data, bench.cut_at, self.close_connection = data[: bench.cut_at], None, True
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        run(["worker", *arguments])
    return int(caught.value.code or 0), capsys.readouterr().err.strip()


def common(tmp_path: Path, url: str) -> list[str]:
    return ["--url", url, "--client-id", "w", "--state-dir", str(tmp_path / "state")]


def test_wrong_secret_is_one_line_and_exit_code_6(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text("bhw_wrong\n")
    code, said = refuse([*common(tmp_path, server), "--secret-file", str(tmp_path / "secret")], capsys)
    assert code == 6
    assert said.count("\n") == 0
    assert "does not accept the secret of client 'w'" in said
    assert "bhw_wrong" not in said


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("http://192.168.1.5:8817", 2, "--allow-insecure-lan"),
        ("host:8817", 2, "not a coordinator's address"),
        ("http://host:port", 2, "not an address"),
    ],
)
def test_bad_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, code: int, words: str
) -> None:
    """Catches a secret sent in clear over a network because of a typed http."""
    found, said = refuse(common(tmp_path, url), capsys)
    assert found == code
    assert words in said


@pytest.mark.parametrize(
    ("path", "words"), [("cuda", "no CUDA device"), ("int_mm", "There is no compute path 'int_mm'")]
)
def test_a_path_that_cannot_be_is_refused_before_anything_is_sent(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    words: str,
) -> None:
    """Nothing listens at this address: a worker that dialled first would wait instead of ending."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("BITHAUL_COMPUTE_PATH", path)
    code, said = refuse(common(tmp_path, "http://127.0.0.1:9"), capsys)
    assert (code, said.count("\n")) == (2, 0)
    assert words in said


def test_missing_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = refuse(
        [*common(tmp_path, "http://127.0.0.1:9"), "--secret-file", str(tmp_path / "x")], capsys
    )
    assert (code, "cannot be read" in said) == (2, True)
    monkeypatch.setenv("BITHAUL_CLIENT_SECRET", " ")
    code, said = refuse(common(tmp_path, "http://127.0.0.1:9"), capsys)
    assert (code, "no client secret" in said) == (6, True)
    assert "BITHAUL_CLIENT_SECRET" not in os.environ  # child processes must not see it


def test_one_state_folder_one_worker(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches two processes that deliver from the same outbox."""
    from filelock import FileLock

    monkeypatch.setenv("BITHAUL_CLIENT_SECRET", "bhw_right")
    (tmp_path / "state").mkdir()
    with FileLock(tmp_path / "state/lock"):
        code, said = refuse(common(tmp_path, server), capsys)
    assert code == 5
    assert "its own --state-dir" in said


def start(tmp_path: Path, url: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "BITHAUL_CLIENT_SECRET": "bhw_right", "OMP_NUM_THREADS": "1"}
    options = ["--threads", "1", "--calibration-seconds", "0.1", "--exit-when-finished"]
    with (tmp_path / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bithaul", "worker", *common(tmp_path, url), *options],
            env=environment,
            stdout=log,
            stderr=log,
        )


def wait_for(condition: Any, what: str) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError(f"{what} did not happen")


@pytest.mark.process
def test_a_whole_run_over_real_http_with_a_cut_download(bench: Any, server: str, tmp_path: Path) -> None:
    """Catches what an in-memory transport hides: keep-alive, Content-Length, half a body."""
    bench.cut_at = 3000
    process = start(tmp_path, server)
    assert process.wait(60) == 0, (tmp_path / "log").read_text()
    assert bench.fake.version == 3
    assert bench.fake.calls["GET /weights/1"] == 2
    assert not list((tmp_path / "state/outbox").iterdir())


@pytest.mark.process
def test_kill_9_before_the_receipt_then_sigterm(bench: Any, server: str, tmp_path: Path) -> None:
    """Catches a finished update lost with its process, sent twice in two shapes, and an impolite end."""
    bench.fake.tasks = 10_000
    lost: list[bytes] = []

    def lose(request: httpx2.Request) -> httpx2.Response:
        lost.append(request.read())
        process.kill()
        raise httpx2.ReadError("killed", request=request)

    bench.fake.faults["gradient"] = [lose]
    process = start(tmp_path, server)
    process.wait(60)
    assert lost
    assert bench.fake.version == 1

    process = start(tmp_path, server)
    wait_for(lambda: bench.fake.version > 2, "progress after the restart")
    assert bench.fake.bodies[0] == lost[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, (tmp_path / "log").read_text()
    assert not list((tmp_path / "state/outbox").iterdir())
    assert bench.fake.open is None  # reported or released, never left to expire
