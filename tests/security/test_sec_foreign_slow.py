"""Section 9 of the security page: a foreign provider that hangs, drips or packs, and who waits for it."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from bithaul.coordinator.identity import foreign

sys.path.insert(0, str(Path(__file__).parent))
from foreign_provider import ADMINS, CLIENT, WIDE, is_in, sign_in


@pytest.fixture
def silent():
    """A provider that takes connections and never says a word: its URL, and who has connected."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    taken = []

    def take():
        with contextlib.suppress(OSError):
            while True:
                taken.append(listener.accept()[0])

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    for connection in taken:
        connection.close()


def knock(site, count):
    """So many strangers at the door at the same time; a function that gives their answers and seconds."""
    answers = []

    def one():
        began = time.monotonic()
        answer = httpx2.get(
            f"http://127.0.0.1:{site.port}/admin/signin",
            headers={"Host": site.http.headers["Host"]},
            timeout=60,
            trust_env=False,
        )
        answers.append((answer, time.monotonic() - began))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()

    def ended():
        for thread in threads:
            thread.join(60)
        return answers

    return ended


def test_sec_10_a_provider_that_hangs_stops_nobody_else(make_site, silent):
    """Wrong results: sixty strangers hold every thread, and no worker gets a token; each asks anew."""
    url, taken = silent
    site = make_site(WIDE, oidc_issuer=url, oidc_client_id=CLIENT, oidc_admins=ADMINS)
    site.token("w1")
    ended = knock(site, 60)
    until = time.monotonic() + 10
    while not taken and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.5)  # all of them are there
    for ask in (
        lambda: site.ask({"grant_type": "client_credentials"}, auth=("w1", site.secrets["w1"])),
        lambda: site.http.get("/.well-known/jwks.json"),
        lambda: site.http.get("/health"),
        lambda: site.http.get("/status"),
    ):
        began = time.monotonic()
        assert ask().status_code < 500
        assert time.monotonic() - began < 2
    answers = ended()
    assert len(answers) == 60
    assert {answer.status_code for answer, _ in answers} == {503}
    assert {answer.headers["retry-after"] for answer, _ in answers} == {"5"}
    assert max(seconds for _, seconds in answers) < 9
    assert len(taken) == 1, "one asks for all, and for ten seconds nobody asks again"
    began = time.monotonic()
    assert site.browser().get("/admin/signin").status_code == 503
    assert time.monotonic() - began < 2
    site.clock.time += 11
    assert site.browser().get("/admin/signin").status_code == 503
    assert len(taken) == 2


def test_sec_10_a_provider_that_drips_is_left_at_the_deadline(make_site, silent, monkeypatch):
    """Wrong result: a byte now and then makes every deadline begin anew."""
    monkeypatch.setattr(foreign, "DEADLINE_SECONDS", 1.0)
    url, taken = silent
    site = make_site(WIDE, oidc_issuer=url, oidc_client_id=CLIENT, oidc_admins=ADMINS)
    ended = knock(site, 1)
    began, started = time.monotonic(), False
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() - began < 5:
            time.sleep(0.2)
            for connection in taken:
                connection.sendall(b"x" if started else b"HTTP/1.1 200 OK\r\nX: ")
                started = True
    [(answer, seconds)] = ended()
    assert (answer.status_code, seconds < 3) == (503, True)


def test_sec_40_what_a_provider_packs_is_not_unpacked(make, provider):
    """Wrong result: 64 KiB on the line become gigabytes here before anybody has counted them."""
    site = make()
    provider.lie = {"packed": True}
    assert site.browser().get("/admin/signin").status_code == 503
    provider.lie = {}
    site.clock.time += 11
    browser = site.browser()
    sign_in(site, browser)
    assert is_in(browser), "the packing was the only reason"


def test_sec_10_a_name_that_is_looked_up_for_ever_is_left_at_the_deadline(make_site, monkeypatch):
    """Wrong result: a name server that does not answer holds the threads for as long as the system tries."""
    monkeypatch.setattr(foreign, "DEADLINE_SECONDS", 1.0)
    ended, asked, real = threading.Event(), [], socket.getaddrinfo

    def look_up(host, *more, **options):
        if host not in ("id.example", b"id.example"):
            return real(host, *more, **options)
        asked.append(host)
        ended.wait(20)
        raise socket.gaierror("nobody answers")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    site = make_site(WIDE, oidc_issuer="https://id.example", oidc_client_id=CLIENT, oidc_admins=ADMINS)
    [(answer, seconds)] = knock(site, 1)()
    ended.set()
    assert asked
    assert (answer.status_code, seconds < 5) == (503, True)
