"""SEC-43, 50, 52, 55, 56, 58, 59: connections, hosts, settings, errors, floors, source code."""

from __future__ import annotations

import ast
import contextlib
import http.client
import importlib.metadata
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from starlette.requests import Request

import bithaul
from bithaul.coordinator.api import public
from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.api.middleware import host_of
from bithaul.coordinator.api.peer import Peers
from bithaul.coordinator.identity.transport import check_public_url
from bithaul.coordinator.protocol import HardenedHttpToolsProtocol
from bithaul.coordinator.server import Server, bind
from bithaul.coordinator.settings import Settings
from bithaul.errors import InvalidConfig

SOURCES = sorted(Path(bithaul.__file__).parent.rglob("*.py"))


def open_connection(site):
    return socket.create_connection(("127.0.0.1", site.port), timeout=10)


def read_all(connection):
    data = b""
    try:
        while piece := connection.recv(65_536):
            data += piece
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize("header", [b"X: " + b"a" * 40_000, b"X: " + b"a" * 4_000_000, b"A: b\r\n" * 20_000])
def test_sec_43_large_headers_are_431(site, header):
    with open_connection(site) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n" + header + b"\r\n\r\n")
        answer = read_all(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
    with open_connection(site) as connection:  # without the race between our sending and its closing
        connection.sendall(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n" + header[:33_000])
        assert read_all(connection).startswith(b"HTTP/1.1 431")


def test_sec_43_long_urls_are_431(site):
    with open_connection(site) as connection:
        connection.sendall(b"GET /" + b"a" * 33_000)
        assert read_all(connection).startswith(b"HTTP/1.1 431")


CHUNKED = (
    b"POST /connect/userinfo HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    "trailer",
    [b"", b"Host: evil.example", b"Content-Encoding: gzip", b"Authorization: Bearer x\r\nAuthorization: y"],
)
def test_sec_43_what_follows_a_body_is_no_header(site, trailer):
    """Wrong result: fields that no proxy looks at, because they come last, are believed like headers."""
    with open_connection(site) as connection:
        connection.sendall(CHUNKED + b"3\r\na=b\r\n0\r\n" + (trailer and trailer + b"\r\n") + b"\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("begin", "piece"),
    [(b"0\r\n", b"A: b\r\n" * 1000), (b"0\r\nA: ", b"a" * 5000), (b"1;", b"a" * 5000)],
    ids=["many fields", "one long field", "what a chunk says of itself"],
)
def test_sec_43_nothing_beside_a_body_is_without_end(site, begin, piece):
    """Wrong result: anybody fills the memory, for nothing that is neither header nor body is counted."""
    sent = 0
    with open_connection(site) as connection:
        connection.sendall(CHUNKED + begin)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while sent < 16_000_000:
                connection.sendall(piece)
                sent += len(piece)
    assert sent < 16_000_000
    assert site.http.get("/.well-known/jwks.json").status_code == 200


def test_sec_43_dripped_headers_and_bodies_are_closed_at_the_deadline(site, monkeypatch):
    monkeypatch.setattr(HardenedHttpToolsProtocol, "header_seconds", 0.3)
    monkeypatch.setattr(HardenedHttpToolsProtocol, "body_seconds", 0.3)
    body = b"POST /connect/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n"
    body += b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    starts = [b"", b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", body]
    connections = [open_connection(site) for _ in starts]
    for connection, start in zip(connections, starts, strict=True):
        connection.sendall(start)
    started = time.monotonic()
    alive = connections[1:]
    while alive and time.monotonic() - started < 5:
        for connection in list(alive):
            try:
                connection.sendall(b"a")
                connection.settimeout(0.05)
                if connection.recv(1000) == b"":
                    alive.remove(connection)
            except TimeoutError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                alive.remove(connection)
        assert site.http.get("/.well-known/jwks.json").status_code == 200
    assert not alive
    assert read_all(connections[0]) == b""
    for connection in connections:
        connection.close()


def test_sec_43_keep_alive_serves_many_requests(site):
    """Wrong result: a counter or timer of one request hits the next one on the same connection."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    for _ in range(60):
        connection.request("GET", "/.well-known/jwks.json", headers={"X": "a" * 2000})
        response = connection.getresponse()
        assert (response.status, len(response.read()) > 100) == (200, True)
    connection.close()


def closed_after(connection, *, at_most=10.0):
    """Seconds until the server closes it."""
    began = time.monotonic()
    connection.settimeout(at_most)
    assert read_all(connection) == b""
    return time.monotonic() - began


def asked(site, request, connection=None):
    """A connection, new or used, after one whole answer; its end is known by its Content-Length."""
    connection = connection or open_connection(site)
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65_536)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" not in head.lower()
    left = int(re.search(rb"content-length: (\d+)", head.lower())[1]) - len(body)
    while left > 0:
        left -= len(connection.recv(left))
    return connection, head


GET = b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
EARLY = (
    b"POST /connect/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
)


def test_sec_43_an_idle_connection_is_closed_in_time(site, monkeypatch):
    """Wrong result: connections that were used once are held for ever, until there are no more."""
    monkeypatch.setattr(HardenedHttpToolsProtocol, "idle_seconds", 0.5)
    monkeypatch.setattr(HardenedHttpToolsProtocol, "header_seconds", 60.0)
    connection, head = asked(site, GET)
    assert head.startswith(b"HTTP/1.1 200")
    with connection:
        assert closed_after(connection) >= 0.4
    connection, head = asked(site, EARLY + b"Content-Length: 20000\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")  # answered before the body
    with connection:
        connection.sendall(b"a" * 20_000)
        assert closed_after(connection) >= 0.4
    assert site.http.get("/.well-known/jwks.json").status_code == 200


def test_sec_43_a_used_connection_is_not_idle(site, monkeypatch):
    """Wrong result: the time since the first request counts, and workers dial anew all the time."""
    monkeypatch.setattr(HardenedHttpToolsProtocol, "idle_seconds", 2.0)
    connection, _ = asked(site, GET)
    began, answers = time.monotonic(), 0
    with connection:
        while time.monotonic() - began < 3.0:
            _, head = asked(site, GET, connection)
            assert head.startswith(b"HTTP/1.1 200")
            answers += 1
    assert answers > 5


def test_sec_43_line_ends_between_requests_do_not_keep_a_connection(site, monkeypatch):
    """Wrong result: a byte now and then, which begins no request, resets the clock."""
    monkeypatch.setattr(HardenedHttpToolsProtocol, "idle_seconds", 0.5)
    monkeypatch.setattr(HardenedHttpToolsProtocol, "header_seconds", 0.5)
    connection, _ = asked(site, GET)
    began = time.monotonic()
    connection.settimeout(0.05)
    with connection:
        while time.monotonic() - began < 8:
            try:
                connection.sendall(b"\r\n")
                if connection.recv(1000) == b"":
                    break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
        else:
            raise AssertionError("it was never closed")


def test_answers_do_not_wait_for_nagle():
    """Wrong result: 40 ms more for each answer, because asyncio left TCP_NODELAY off."""
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.fixture
def serve(tmp_path):
    """A function that serves one body of so many bytes to everybody; a connection that asks for it.

    The kernel keeps little of it: what a peer does not read waits in the server.
    """
    running = []

    def make(size, *, last=False):
        async def app(scope, receive, send):
            if scope["type"] != "http":
                return
            headers = [(b"content-length", str(size).encode())] + [(b"connection", b"close")] * last
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for begin in range(0, size, 50_000):
                body = b"x" * min(50_000, size - begin)
                more = begin + 50_000 < size
                await send({"type": "http.response.body", "body": body, "more_body": more})

        listener = bind("127.0.0.1", 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 300_000 if size > 100_000 else 4096)
        ready = threading.Event()
        server = Server(app, Settings(directory=tmp_path), on_ready=ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        assert ready.wait(20)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        running.append((server, thread, connection))
        connection.connect(listener.getsockname())
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        return server, connection

    yield make
    for server, thread, connection in running:
        connection.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def is_left(server):
    """Whether the server has let go of its one connection, within seconds."""
    until = time.monotonic() + 6
    while time.monotonic() < until:
        if not server.server_state.connections and not server.server_state.tasks:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("size", "last"), [(20_000_000, False), (60_000, False), (60_000, True)])
def test_sec_43_who_does_not_read_is_left_in_time(serve, monkeypatch, size, last):
    """Wrong result: an answer that nobody takes holds its connection, file and memory for ever.

    One that is being written, one that is written as far as the application knows, one that ends with it.
    """
    monkeypatch.setattr(HardenedHttpToolsProtocol, "read_seconds", 0.5)
    server, connection = serve(size, last=last)
    connection.recv(100)
    began = time.monotonic()
    assert is_left(server)
    assert time.monotonic() - began > 0.2
    with contextlib.suppress(ConnectionResetError):
        assert len(read_all(connection)) < size


def test_sec_43_who_reads_slowly_gets_everything(serve, monkeypatch):
    """Wrong result: a poor line is cut off, because the system takes from us only in large pieces."""
    monkeypatch.setattr(HardenedHttpToolsProtocol, "read_seconds", 0.5)
    server, connection = serve(1_000_000)
    taken = 0
    began = time.monotonic()
    while taken < 1_000_000 and (piece := connection.recv(4096)):
        taken += len(piece)
        time.sleep(0.015)
    assert taken >= 1_000_000
    assert time.monotonic() - began > 2, "several deadlines"
    time.sleep(1.0)
    assert server.server_state.connections, "and it may ask again"


def test_sec_43_a_crowd_at_health_costs_one_check_a_second(site, monkeypatch):
    """Wrong result: anyone can keep the database's writer busy through a public route."""
    calls = []
    real = public.health
    monkeypatch.setattr(public, "health", lambda c: calls.append(1) or real(c))
    for _ in range(10):
        assert site.http.get("/health").json()["checks"]
    site.clock.time += 1
    site.http.get("/health")
    assert len(calls) == 2


def test_sec_50_foreign_hosts_are_refused(site):
    for host in ["evil", "evil:80", "127.0.0.1.evil", "127.0.0.1@evil", "", "a b", "localhost:x"]:
        response = site.http.get("/.well-known/jwks.json", headers={"Host": host})
        assert response.status_code == 400, host
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("peer", "address"), [("::ffff:10.0.0.2", "9.9.9.9"), ("::ffff:10.0.0.3", "::ffff:10.0.0.3")]
)
def test_sec_50_a_proxy_is_known_on_a_listener_for_ipv4_and_ipv6(tmp_path, peer, address):
    """Wrong result: with `--host ::` all visitors of a trusted proxy share its address and one throttle."""
    peers = Peers(Settings(directory=tmp_path, trusted_proxies=("10.0.0.2",)))
    headers = [(b"x-forwarded-for", b"9.9.9.9")]
    assert peers.address_of(Request({"type": "http", "client": (peer, 1), "headers": headers})) == address


def test_sec_50_two_hosts_or_none(site):
    for head in (b"Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n", b""):
        with open_connection(site) as connection:
            connection.sendall(b"GET /status HTTP/1.1\r\n" + head + b"Connection: close\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 400")
    assert host_of(["[::1]:80"]) == "::1"


def test_sec_50_links_come_from_the_public_url_only(site):
    url = f"http://127.0.0.1:{site.port}"
    headers = {"Host": f"localhost:{site.port}", "X-Forwarded-Host": "evil", "X-Forwarded-Proto": "https"}
    document = site.http.get(
        "/.well-known/oauth-authorization-server", headers={**headers, "Forwarded": "host=evil"}
    )
    assert document.json()["issuer"] == url
    assert "evil" not in document.text
    assert document.json() == site.http.get("/.well-known/openid-configuration").json()
    named = {name: value for name, value in document.json().items() if name.endswith(("_endpoint", "_uri"))}
    assert len(named) == 7
    for address in named.values():
        assert address.startswith(url)
        assert site.http.request("OPTIONS", address).status_code == 405  # it exists


def test_sec_52_unsafe_public_urls_are_refused():
    for url in ("https://x.example", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"):
        assert check_public_url(url, allow_insecure_lan=False) is None
    for url in ("http://192.168.1.7:1", "http://10.0.0.1", "http://box.local", "http://[fd00::1]:1"):
        with pytest.raises(InvalidConfig, match="--allow-insecure-lan"):
            check_public_url(url, allow_insecure_lan=False)
        assert check_public_url(url, allow_insecure_lan=True) is not None
    for url in (
        "http://example.com",
        "http://8.8.8.8",
        "http://0.0.0.0:1",
        "ftp://x",
        "x",
        "",
        "https://a@b",
        "https://x/y",
        "http://x:y",
    ):
        with pytest.raises(InvalidConfig):
            check_public_url(url, allow_insecure_lan=True)


def test_sec_55_errors_carry_a_request_id_and_no_traceback(site, monkeypatch):
    def broken(*unused):
        raise ZeroDivisionError("inner secret")

    monkeypatch.setattr("bithaul.coordinator.api.public.status", broken)
    response = site.http.get("/status")
    assert response.status_code == 500
    assert response.json()["code"] == "internal_error"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    for word in ("Traceback", "ZeroDivision", "inner secret", ".py"):
        assert word not in response.text
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect", "/nope", "/", "/api", "/work/"):
        response = site.http.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "not_found"), path
        assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])
    response = site.http.delete("/status")
    assert (response.status_code, response.json()["code"], response.headers["allow"]) == (
        405,
        "method_not_allowed",
        "GET",
    )


def test_sec_55_every_operation_answers_nonsense_with_a_problem(site):
    """Wrong result: a framework's own error text, or a 500, from any operation for any caller."""
    for headers in ({}, site.worker(), site.admin()):
        for operation in site.operations():
            if operation.scope is None:
                continue
            response = site.http.request(
                operation.method,
                operation.path,
                content=b"\xff{",
                headers={**headers, "content-type": "application/json"},
            )
            assert response.status_code < 500, operation
            if response.status_code >= 400:
                assert response.headers["content-type"] == "application/problem+json", operation
                if operation.method != "HEAD":  # its answer has no body
                    assert {"status", "title", "detail", "code"} <= set(response.json())


def test_sec_56_floors_hold():
    def version(name):
        return tuple(int(part) for part in importlib.metadata.version(name).split(".")[:3])

    assert version("starlette") >= (1, 10)
    assert version("authlib") >= (1, 9, 9)
    assert version("joserfc") >= (1, 8)


def test_sec_58_binds_to_this_machine_unless_told_otherwise(tmp_path):
    assert Settings(directory=tmp_path).host == "127.0.0.1"


SECRETIVE = re.compile(r"(^|_)(secret|token|digest|verifier|hash|signature|password|pepper)s?($|_)")
HARMLESS = {"password_changed_at", "layout_hash", "label_token", "tokens", "tokenizer_sha256", "scale_hash"}


def names_of(node):
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def is_column(side):
    """`table.c.name`: SQL looks up the digest of 256 random bits."""
    inner = side.value if isinstance(side, ast.Attribute) else None
    return isinstance(inner, ast.Attribute) and inner.attr == "c"


def compares_secrets(source):
    """Names in == and != comparisons that look like secrets, with line numbers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            for side in (node.left, *node.comparators):
                if is_column(side):
                    continue
                names = {side.id} if isinstance(side, ast.Name) else set()
                names |= {side.attr} if isinstance(side, ast.Attribute) else set()
                if isinstance(side, ast.Subscript):
                    names |= set(names_of(side.slice))
                found = {name for name in names if SECRETIVE.search(name.lower())} - HARMLESS
                if found:
                    yield node.lineno, found


def test_sec_59_secrets_are_never_compared_with_equals():
    """Only rooms that handle credentials: a token elsewhere is a word of the vocabulary."""
    credential_rooms = [
        path for path in SOURCES if {"identity", "api", "site"} & set(path.parts) or path.parent.name == "cli"
    ]
    assert len(credential_rooms) > 15
    for path in credential_rooms:
        assert not list(compares_secrets(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize(
    "line", ["a.secret_hash == b", "row['secret'] != x", "token == given", "f(x).digest == y"]
)
def test_sec_59_the_check_sees_what_it_must(line):
    assert list(compares_secrets(line))


def test_sec_59_insecure_transport_is_never_switched_on():
    """A2: Authlib's global switch."""
    for path in SOURCES:
        assert "AUTHLIB_INSECURE_TRANSPORT" not in path.read_text(encoding="utf-8")


def test_sec_55_people_get_a_page_and_machines_get_problem_json(site, monkeypatch):
    """Wrong result: JSON for a person, HTML for a script, a page without the policy or with the input."""

    def broken(*unused):
        raise ZeroDivisionError("inner secret")

    monkeypatch.setattr("bithaul.coordinator.api.public.status", broken)
    person = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    forged = {"Cookie": f"{Cookies(site.c.settings).session}={'c' * 43}", "Origin": "https://evil.example"}
    for method, path, more, status in (
        ("GET", "/nowhere/<b>evil", {}, 404),
        ("DELETE", "/health", {}, 405),
        ("GET", "/status", {}, 500),
        ("POST", "/account/sign-out", forged, 403),
        ("GET", "/weights/x", site.worker(), 422),
        ("GET", "/api/keys", {}, 401),
    ):
        page = site.http.request(method, path, headers={**person, **more})
        assert page.status_code == status, path
        assert page.headers["content-type"].startswith("text/html"), path
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"], path
        assert page.headers["x-request-id"] in page.text, "so that its line in the log can be found"
        assert 'href="/"' in page.text, "a way back"
        assert not re.search("evil|inner secret|ZeroDivision|Traceback", page.text), path
        told = site.http.request(method, path, headers=more)
        assert told.status_code == status, path
        assert told.headers["content-type"] == "application/problem+json", path
        for name in ("www-authenticate", "allow"):
            assert page.headers.get(name) == told.headers.get(name), path
    start = site.http.get("/", headers=person)
    assert (start.status_code, start.headers["location"]) == (303, "/admin"), (
        "the bare address leads to the site"
    )
