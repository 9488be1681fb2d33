"""SEC-29, 43, 50: requests that two parsers may read in two ways, and a real nginx with TLS in front.

Where no nginx is installed the tests behind one are skipped; `.ci/run` installs it.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.throttle import Limits

sys.path.insert(0, str(Path(__file__).parent))
from foreign_provider import Authority

WIDE = Limits(per_client_and_address=100_000, per_address=100_000, in_all=100_000)
FORM = "Content-Type: application/x-www-form-urlencoded\r\n"
HIDDEN = "GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
CHUNKS = f"0\r\n\r\n{HIDDEN}"

AMBIGUOUS = {
    "length and chunks": f"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKS}",
    "chunks and length": f"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{CHUNKS}",
    "two lengths": f"Content-Length: 0\r\nContent-Length: 60\r\n\r\n{HIDDEN}",
    "a list of lengths": f"Content-Length: 0, 60\r\n\r\n{HIDDEN}",
    "chunked twice": f"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n{CHUNKS}",
    "chunked not last": f"Transfer-Encoding: chunked, identity\r\n\r\n{CHUNKS}",
    "nearly chunked": f"Transfer-Encoding: xchunked\r\n\r\n{CHUNKS}",
    "chunked in quotes": f'Transfer-Encoding: "chunked"\r\n\r\n{CHUNKS}',
    "a blank before the colon": f"Transfer-Encoding : chunked\r\n\r\n{CHUNKS}",
    "a tab before the colon": f"Content-Length\t: 60\r\n\r\n{HIDDEN}",
    "a folded line": f"X: a\r\n Content-Length: 60\r\n\r\n{HIDDEN}",
    "a bare carriage return": f"X: a\rContent-Length: 60\r\n\r\n{HIDDEN}",
    "a NUL": f"X: a\0b\r\n\r\n{HIDDEN}",
    "a header without a name": f": 1\r\n\r\n{HIDDEN}",
    "a chunk with a sign": f"Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n{HIDDEN}",
    "a chunk beyond 64 bits": f"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n{HIDDEN}",
    "a chunk as 0x": f"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n{HIDDEN}",
    "a chunk that is longer than it says": f"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n{HIDDEN}",
}


def answers(port: int, text: str, wrap=lambda line: line) -> list[bytes]:
    """The status lines that come back until the other side is silent or closes."""
    with wrap(socket.create_connection(("127.0.0.1", port), timeout=10)) as line:
        line.sendall(text.encode("latin-1"))
        line.settimeout(1.0)
        told = b""
        try:
            while piece := line.recv(65_536):
                told += piece
        except (TimeoutError, ConnectionResetError):
            pass
    return [part for part in told.split(b"\r\n") if part.startswith(b"HTTP/1.")]


@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_sec_43_what_two_parsers_may_read_in_two_ways_is_refused(site, rest):
    """Wrong result: a second answer, to a request that a proxy in front took for the first one's body.

    The hidden request is not finished: whoever comes next on this connection would finish it.
    """
    head = f"POST /connect/token HTTP/1.1\r\nHost: 127.0.0.1\r\n{FORM}"
    told = answers(site.port, head + rest + "y\r\n\r\n")
    assert [line for line in told if b" 200 " in line] == []
    assert told == [] or told[0].startswith(b"HTTP/1.1 400"), told
    assert len(told) <= 1, told


@pytest.fixture
def behind_nginx(make_site, tmp_path):
    """A coordinator whose public URL is an nginx with a certificate of a throw-away authority."""
    if shutil.which("nginx") is None:
        pytest.skip("no nginx is installed here")
    authority = Authority(tmp_path)
    authority.context()  # writes localhost1.pem
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = Limits(per_client_and_address=3, per_address=6, in_all=100_000)
    site = make_site(limits, public_url=f"https://localhost:{port}", trusted_proxies=("127.0.0.1",))
    folder = tmp_path / "nginx"
    folder.mkdir()
    places = "".join(
        f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"user root; daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; {places}\n"
        f"upstream coordinator {{ server 127.0.0.1:{site.port}; keepalive 1; }}\n"
        f"server {{ listen 127.0.0.1:{port} ssl; server_name localhost;\n"
        f"ssl_certificate {tmp_path}/localhost1.pem; ssl_certificate_key {tmp_path}/localhost1.pem;\n"
        "location / { proxy_pass http://coordinator; proxy_http_version 1.1;\n"
        'proxy_set_header Connection ""; proxy_set_header Host $http_host;\n'
        "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; } } }\n"
    )
    command = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    trusted = ssl.create_default_context(cafile=authority.file)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    site.http.close()
    site.http = httpx2.Client(
        base_url=site.c.settings.base_url,
        timeout=20,
        trust_env=False,
        verify=trusted,
        event_hooks={"response": [site.issued.note]},
    )
    site.proxy = (port, lambda line: trusted.wrap_socket(line, server_hostname="localhost"))
    yield site
    process.terminate()
    process.wait(20)


def test_sec_29_signing_in_over_https_behind_a_proxy(behind_nginx):
    """Over TLS, with the names and attributes of https: pages, cookies, tokens, the visitor's address."""
    site = behind_nginx
    site.person()
    browser = site.browser(Origin=site.c.settings.base_url)
    page = browser.enter()
    assert page.status_code == 200
    assert page.headers["strict-transport-security"] == "max-age=31536000"
    assert all(name.startswith("__Host-bithaul-") for name in browser.cookies)
    [session] = Sessions(site.c).live()
    assert session.address == "127.0.0.1"
    cookies = browser.get("/admin/signin").headers.get_list("set-cookie")
    assert cookies
    assert all("; Secure" in cookie and "; HttpOnly" in cookie for cookie in cookies)
    assert site.http.get("/api/keys", headers=site.admin()).status_code == 200


def test_sec_50_what_a_stranger_forwards_counts_for_nothing_behind_a_proxy(behind_nginx):
    """Wrong results: guesses under made-up addresses, each with limits of its own; a host of a stranger's."""
    site = behind_nginx
    site.client("w1")

    def guess(forwarded):
        fields = {"grant_type": "client_credentials"}
        sent = {"X-Forwarded-For": forwarded, "X-Real-IP": forwarded, "Forwarded": f"for={forwarded}"}
        return site.ask(fields, auth=("w1", "wrong"), headers=sent).status_code

    # nginx adds the peer, which is 127.0.0.1 and itself a trusted proxy here: the next one to the left counts
    assert [guess("9.9.9.9, 8.8.8.8") for _ in range(4)] == [401, 401, 401, 429]
    assert guess("7.7.7.7, 8.8.8.8") == 429
    evil = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http", "X-Forwarded-Port": "1"}
    found = site.http.get("/.well-known/openid-configuration", headers=evil).json()
    assert "evil" not in str(found)
    assert found["issuer"] == site.c.settings.base_url
    assert site.http.get("/status", headers={"Host": "evil.example"}).status_code == 400


def test_sec_43_no_request_hides_in_anothers_body_behind_a_proxy(behind_nginx):
    """Wrong result: what the proxy passes on as a body is a request for the coordinator, and the next visitor
    on the connection between the two gets its answer.
    """
    site = behind_nginx
    port, wrap = site.proxy
    head = f"POST /connect/token HTTP/1.1\r\nHost: localhost:{port}\r\n{FORM}"
    for why, rest in AMBIGUOUS.items():
        told = answers(port, head + rest + "y\r\n\r\n", wrap)
        assert [line for line in told if b" 200 " in line] == [], why
        for _ in range(3):  # on the one connection that nginx keeps
            jwks = site.http.get("/.well-known/jwks.json")
            assert (jwks.status_code, "keys" in jwks.json()) == (200, True), why
