"""The client: tokens, retries, where the token goes, what each answer means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from bithaul.errors import Gone, InvalidInput, Unauthorized, Unavailable
from bithaul.exchange.messages import HeartbeatRequest, RegisterRequest, RunState
from bithaul.worker.backoff import Backoff
from bithaul.worker.client import CoordinatorClient, is_loopback
from bithaul.worker.link import Refused, Stopped

REGISTER = RegisterRequest(codecs=["fp32-v1"], weight_formats=["weights-v1"])


def refuse(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("refused", request=request)


def status(code: int, **headers: str) -> Any:
    return lambda request: httpx2.Response(code, headers=headers)


def problem(code: int, name: str) -> Any:
    body = {"title": "t", "status": code, "detail": "Because.", "code": name}
    return lambda request: httpx2.Response(code, json=body)


def test_one_token_for_many_requests_and_a_new_one_before_it_expires(bench: Any) -> None:
    """Catches a token request per call, and waiting for the 401."""
    bench.client.register(REGISTER)
    bench.client.work()
    assert bench.fake.calls["POST /connect/token"] == 1
    bench.now[0] = 3600 - 61
    bench.client.work()
    assert bench.fake.calls["POST /connect/token"] == 1
    bench.now[0] = 3600 - 59
    bench.client.work()
    assert bench.fake.calls["POST /connect/token"] == 2


def test_a_401_renews_the_token_once(bench: Any) -> None:
    """Catches a worker that is dead after the coordinator's keys changed (pitfall Q11)."""
    bench.client.register(REGISTER)
    bench.fake.tokens.clear()
    bench.client.work()
    assert bench.fake.calls["POST /connect/token"] == 2


def test_wrong_secret_is_said_at_once(bench: Any) -> None:
    """Catches endless retries with a secret that will never be right."""
    bench.fake.secret = "bhw_other"
    with pytest.raises(Unauthorized, match=r"'w'.*invalid_client") as caught:
        bench.client.register(REGISTER)
    assert caught.value.exit_code == 6
    assert bench.fake.calls["POST /connect/token"] == 1


def test_a_token_that_is_refused_twice_is_an_error(bench: Any) -> None:
    bench.fake.faults["work"] = [problem(401, "unauthorized")] * 2
    with pytest.raises(Unauthorized):
        bench.client.work()


@pytest.mark.parametrize("fault", [refuse, *(status(s) for s in (408, 429, 500, 502, 503, 504, 507))])
def test_what_may_pass_is_repeated(bench: Any, fault: Any) -> None:
    bench.fake.faults["register"] = [fault] * 3
    bench.client.register(REGISTER)
    assert bench.fake.calls["POST /register"] == 4
    assert bench.output.getvalue().count("does not answer") == 1  # said once, not at every try
    assert "answers again" in bench.output.getvalue()


@pytest.mark.parametrize("where", ["connect", "register"])
def test_answers_of_proxies_conclude_nothing(bench: Any, where: str) -> None:
    """Catches giving up because a tunnel answers 404 in HTML while the coordinator is away."""
    page = lambda request: httpx2.Response(404, html="<h1>tunnel offline</h1>")  # noqa: E731
    bench.fake.faults[where] = [page] * 2
    bench.client.register(REGISTER)


def test_retry_after_is_honoured() -> None:
    """Catches coming back sooner than asked."""
    backoff = Backoff(first=0.5, factor=2, longest=30)
    assert backoff.wait(0, random=0.0, asked=7.0) == 7.0
    assert 7.0 < backoff.wait(9, random=0.99, asked=7.0) < 9.0
    assert [backoff.wait(i, random=0.0) for i in range(3)] == [0.25, 0.5, 1.0]
    assert backoff.wait(10_000, random=0.99) < 30.0


def test_work_answers(bench: Any) -> None:
    bench.client.register(REGISTER)
    answer = bench.client.work()
    assert answer.task.task == 1
    assert answer.state is RunState.RUNNING
    bench.fake.open, bench.fake.done = None, 99
    answer = bench.client.work()
    assert (answer.task, answer.retry_after, answer.state) == (None, 0.001, RunState.FINISHED)


def test_not_registered_is_gone(bench: Any) -> None:
    with pytest.raises(Gone):
        bench.client.work()


def test_problem_codes_survive(bench: Any) -> None:
    bench.fake.faults["work"] = [problem(409, "identity_in_use")]
    with pytest.raises(Refused) as caught:
        bench.client.work()
    assert (caught.value.status, caught.value.error_code) == (409, "identity_in_use")


def test_a_heartbeat_is_not_repeated(bench: Any) -> None:
    """Catches a heartbeat thread that hangs in retries with old progress."""
    bench.fake.faults["heartbeat"] = [refuse]
    with pytest.raises(Unavailable):
        bench.client.heartbeat(HeartbeatRequest())
    assert bench.fake.calls["POST /heartbeat"] == 1


def test_stop_ends_waiting(bench: Any) -> None:
    bench.fake.faults["register"] = [refuse] * 1000
    bench.stop.request()
    with pytest.raises(Stopped):
        bench.client.register(REGISTER)
    assert bench.fake.calls["POST /register"] == 1


def test_upload_goes_on_in_the_grace_period(bench: Any, tmp_path: Path) -> None:
    """Catches a finished update that is not delivered because SIGTERM came first."""
    file = tmp_path / "u"
    file.write_bytes(b"x" * 2_000_000)
    bench.stop.request()
    bench.client.register(REGISTER)
    bench.fake.faults["gradient"] = [refuse, problem(409, "unknown_fence")]
    with pytest.raises(Refused, match="Because"):
        bench.client.submit(1, "0" * 32, file, moved=lambda n: None)
    bench.fake.faults["gradient"] = [refuse] * 10_000
    with pytest.raises(Stopped):
        bench.client.submit(1, "0" * 32, file, moved=lambda n: None)


def test_upload_is_streamed_with_its_length(bench: Any, tmp_path: Path) -> None:
    """Catches chunked encoding, which a server cannot bound before reading, and one piece of 500 MB."""
    file = tmp_path / "u"
    file.write_bytes(b"x" * 2_000_000)
    seen: list[httpx2.Request] = []
    pieces: list[int] = []

    def take(request: httpx2.Request) -> httpx2.Response:
        request.read()
        seen.append(request)
        receipt = {"task": 1, "fence": "0" * 32, "verdict": "accepted"}
        return httpx2.Response(200, json=receipt)

    bench.fake.faults["gradient"] = [
        status(200),  # not a receipt: no reason to believe the update arrived
        lambda request: httpx2.Response(202, headers={"Retry-After": "0"}),
        take,
    ]
    bench.client.submit(1, "0" * 32, file, moved=pieces.append)
    assert seen[0].headers["Content-Length"] == "2000000"
    assert "Transfer-Encoding" not in seen[0].headers
    assert seen[0].headers["Content-Type"] == "application/octet-stream"
    assert pieces == [1_048_576, 951_424] * 3


def test_the_token_stays_at_its_origin(bench: Any) -> None:
    """Catches a token sent to object storage or to wherever a redirect points (pitfall S7)."""
    asked: list[tuple[str, bool]] = []

    def server(request: httpx2.Request) -> httpx2.Response:
        asked.append((str(request.url), "Authorization" in request.headers))
        if request.url.path == "/connect/token":
            return httpx2.Response(200, json={"access_token": "t", "expires_in": 60})
        if request.url.host == "good":
            return httpx2.Response(307, headers={"Location": "https://storage.example/blob?sig=1"})
        return httpx2.Response(200, content=iter([b"data"]))

    client = CoordinatorClient(
        "https://good",
        client_id="w",
        secret="s",
        stop=bench.stop,
        log=bench.log,
        transport=httpx2.MockTransport(server),
    )
    with client.download("/weights/1", {}) as response:
        assert response.read() == b"data"
    assert asked[1:] == [("https://good/weights/1", True), ("https://storage.example/blob?sig=1", False)]
    client.close()


@pytest.mark.parametrize("url", ["localhost:8817", "ftp://host", "http://", ""])
def test_addresses_are_checked(bench: Any, url: str) -> None:
    with pytest.raises(InvalidInput, match="https://host:8817"):
        CoordinatorClient(url, client_id="w", secret="s", stop=bench.stop, log=bench.log)


def test_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("192.168.0.7")
    assert not is_loopback("localhost.example.com")


def test_neither_secret_nor_token_is_logged(bench: Any) -> None:
    bench.fake.faults["register"] = [refuse]
    bench.client.register(REGISTER)
    assert "bhw_right" not in bench.output.getvalue()
    assert "token-0" not in bench.output.getvalue()
