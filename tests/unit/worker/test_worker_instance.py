"""Which machine a worker says it is, and what it does while another one works with its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bithaul.exchange.messages import INSTANCE_HEADER
from bithaul.worker import loop
from bithaul.worker.client import CoordinatorClient
from bithaul.worker.instance import instance_of
from bithaul.worker.stop import Stop


def in_use(request: httpx2.Request) -> httpx2.Response:
    body = {"title": "t", "status": 409, "detail": "Another machine works.", "code": "identity_in_use"}
    return httpx2.Response(409, json=body)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_ASK_AGAIN_SECONDS", 0.001)


def again(bench: Any, answer: Callable[[httpx2.Request], httpx2.Response] | None = None) -> None:
    """A new process: new client, new stop."""
    bench.client.close()
    bench.stop.close()
    bench.stop = Stop(grace=0.2)
    bench.client = CoordinatorClient(
        "http://127.0.0.1:8817",
        client_id="w",
        secret="bhw_right",
        stop=bench.stop,
        log=bench.log,
        transport=httpx2.MockTransport(answer or bench.fake),
    )


def test_a_folder_is_one_machine_for_good(tmp_path: Path) -> None:
    """Catches a worker that is a stranger after its restart, and two folders that are the same."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    made = instance_of(first)
    assert instance_of(first) == made
    assert instance_of(second) != made
    assert sorted(p.name for p in first.iterdir()) == ["instance"]


@pytest.mark.parametrize("broken", [b"", b"abc", b"\xff" * 32, b"A" * 32, b"0" * 33])
def test_a_broken_file_is_made_anew(tmp_path: Path, broken: bytes) -> None:
    """Catches a worker that a power cut has locked out, or one that sends what no coordinator takes."""
    (tmp_path / "instance").write_bytes(broken)
    made = instance_of(tmp_path)
    assert len(made) == 32
    assert instance_of(tmp_path) == made


def test_it_is_said_wherever_it_matters(bench: Any, tmp_path: Path) -> None:
    """Catches a heartbeat or a call for work that keeps another machine's lease alive."""
    said: dict[str, set[str | None]] = {}

    def listen(request: httpx2.Request) -> httpx2.Response:
        said.setdefault(request.url.path, set()).add(request.headers.get(INSTANCE_HEADER))
        return bench.fake(request)

    again(bench, listen)
    bench.worker(tmp_path).run()
    mine = instance_of(tmp_path / "state")
    assert {r.instance for r in bench.fake.registrations} == {mine}
    assert said["/work"] == said["/heartbeat"] == {mine}


def test_a_second_machine_waits_and_says_why(bench: Any, tmp_path: Path) -> None:
    """Catches one that ends, and one that waits without a word."""
    bench.fake.faults["register"] = [in_use] * 3
    bench.worker(tmp_path).run()
    assert bench.output.getvalue().count("Another machine works.") == 3
    assert bench.fake.version == 3  # then it was let in


def test_a_second_machine_stops_when_asked(bench: Any, tmp_path: Path) -> None:
    def stop(request: httpx2.Request) -> httpx2.Response:
        bench.stop.request()
        return in_use(request)

    bench.fake.faults["register"] = [in_use, stop, *[in_use] * 1000]
    bench.worker(tmp_path).run()
    assert bench.fake.calls["POST /register"] == 2
    assert bench.fake.calls["GET /work"] == 0


def test_who_was_replaced_while_it_trained_waits(bench: Any, tmp_path: Path) -> None:
    """Catches a machine that asks for work under a name that is another's now."""
    replaced = {"title": "t", "status": 410, "detail": "Register.", "code": "not_registered"}
    seen: list[str] = []

    def told(request: httpx2.Request) -> httpx2.Response:
        bench.fake.faults["register"] = [in_use] * 3
        seen.append(request.url.path)
        return httpx2.Response(410, json=replaced)

    bench.fake.faults["work"] = [told]
    bench.worker(tmp_path).run()
    assert seen == ["/work"]
    assert bench.output.getvalue().count("Another machine works.") == 3
    assert bench.fake.version == 3


def test_what_is_finished_is_delivered_while_it_waits(bench: Any, tmp_path: Path) -> None:
    """Catches an update that rests in the outbox until the other machine is gone."""
    bench.fake.tasks = 1

    def down(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("down", request=request)

    bench.fake.faults["gradient"] = [down] * 100_000
    bench.fake.on_beat = lambda beat: bench.stop.request() if beat.activity == "uploading" else None
    bench.worker(tmp_path).run()
    assert len(list((tmp_path / "state/outbox").iterdir())) == 1
    bench.fake.on_beat = lambda beat: None
    bench.fake.faults.clear()
    again(bench)

    def stop_when_delivered(request: httpx2.Request) -> httpx2.Response:
        if bench.fake.version == 2:
            bench.stop.request()
        return in_use(request)

    bench.fake.faults["register"] = [stop_when_delivered] * 1000
    bench.fake.calls.clear()
    bench.worker(tmp_path).run()
    assert bench.fake.version == 2
    assert bench.fake.calls["POST /gradient"] == 1
    assert bench.fake.calls["POST /register"] == 2
    assert not list((tmp_path / "state/outbox").iterdir())


def test_delivered_while_it_waits_to_deliver(bench: Any, tmp_path: Path) -> None:
    """Catches a file asked for that is gone: told to register in the middle, and then to wait."""
    bench.fake.tasks = 1

    def forgotten(request: httpx2.Request) -> httpx2.Response:
        bench.fake.faults["register"] = [in_use] * 2
        body = {"title": "t", "status": 410, "detail": "Register.", "code": "not_registered"}
        return httpx2.Response(410, json=body)

    bench.fake.faults["gradient"] = [forgotten]
    bench.worker(tmp_path).run()
    assert bench.fake.version == 2
    assert bench.fake.calls["POST /gradient"] == 2
    assert not list((tmp_path / "state/outbox").iterdir())
