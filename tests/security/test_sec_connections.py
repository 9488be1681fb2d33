"""SEC-43: how many connections one address may have open, by real sockets from several addresses."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import time

import pytest

from bithaul.coordinator import connections, server
from bithaul.coordinator.connections import PeerConnections
from bithaul.coordinator.identity.throttle import Limits

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not there by itself")
CROWD, OTHER = "127.0.0.2", "127.0.0.3"
ASK = b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def connect(make_site):
    """A function that makes a site with these settings, and gives one that connects to it from an address."""
    with contextlib.ExitStack() as held:

        def make(**options):
            site = make_site(Limits(), **options)

            def connect(address="127.0.0.1"):
                made = socket.create_connection(("127.0.0.1", site.port), 10, source_address=(address, 0))
                return held.enter_context(made)

            return connect

        yield make


def answer_on(connection):
    """The status of a request; 0 when the connection is closed without an answer."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(ASK)
    with contextlib.closing(http.client.HTTPResponse(connection)) as answer:
        try:
            answer.begin()
            answer.read()
        except (ConnectionResetError, http.client.RemoteDisconnected):
            return 0
        return answer.status


@ON_LINUX
def test_sec_43_one_address_does_not_take_every_connection(connect, monkeypatch):
    """Wrong results: one address holds all there are, and others are told 503; no place gets free again."""
    monkeypatch.setattr(connections, "LOOPBACK", ())
    open_from = connect(connections_per_address=16)
    crowd = [open_from(CROWD) for _ in range(16)]
    assert [answer_on(connection) for connection in crowd] == [200] * 16
    for _ in range(40):
        assert answer_on(open_from(CROWD)) in (0, 503)
    late = open_from(CROWD)
    head = late.recv(65_536)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: " in head
    assert late.recv(1) == b"", "and it is closed at once"
    assert answer_on(open_from(OTHER)) == 200
    assert [answer_on(connection) for connection in crowd] == [200] * 16, "and they go on"
    crowd.pop().close()
    until = time.monotonic() + 10
    while (again := answer_on(open_from(CROWD))) != 200 and time.monotonic() < until:
        time.sleep(0.02)
    assert again == 200
    assert answer_on(open_from(CROWD)) in (0, 503)


@ON_LINUX
def test_sec_43_proxies_and_this_machine_have_as_many_as_they_like(connect, monkeypatch):
    """Wrong result: all visitors of a tunnel, or all workers of this machine, share the places of one."""
    monkeypatch.setattr(connections, "LOOPBACK", ("127.0.0.3/32",))
    open_from = connect(connections_per_address=16, trusted_proxies=(CROWD,))
    for address in (CROWD, OTHER):
        assert [answer_on(open_from(address)) for _ in range(40)] == [200] * 40
    assert [answer_on(open_from("127.0.0.4")) for _ in range(18)].count(200) == 16


@ON_LINUX
def test_sec_43_fifty_workers_behind_one_address_work(connect, monkeypatch):
    """Wrong result: the bound meant for attackers shuts out a house full of machines."""
    monkeypatch.setattr(connections, "LOOPBACK", ())
    open_from = connect()
    assert [answer_on(open_from(CROWD)) for _ in range(200)] == [200] * 200


def test_sec_43_in_a_full_house_who_is_connected_goes_on(connect, monkeypatch):
    """Wrong results: with the last place taken everybody is told 503; who finds none keeps a file open."""
    monkeypatch.setattr(server, "most_connections", lambda: 64)
    open_from = connect()
    inside = [open_from() for _ in range(63)]
    assert [answer_on(connection) for connection in inside] == [200] * 63
    outside = open_from()
    assert outside.recv(65_536).startswith(b"HTTP/1.1 503 ")
    assert outside.recv(1) == b""
    assert [answer_on(connection) for connection in inside] == [200] * 63


def test_sec_43_all_addresses_of_one_customer_are_bounded():
    """Wrong results: a /48 has 65,536 networks with a bound each; one address is counted under two names;
    addresses that are gone are kept for ever.
    """
    peers = PeerConnections(per_address=4, in_all=1000)
    assert [peers.enter(f"2001:db8:1:1::{i}") for i in range(6)] == [True] * 4 + [False] * 2
    assert [peers.enter(f"2001:db8:1:2::{i}") for i in range(6)] == [True] * 4 + [False] * 2
    assert not peers.enter("2001:db8:1:3::"), "its /56"
    assert [peers.enter(f"2001:db8:1:{i}00::") for i in range(1, 10)] == [True] * 8 + [False], "its /48"
    assert [peers.enter(a) for a in ("9.9.9.9", "::ffff:9.9.9.9") * 3] == [True] * 4 + [False] * 2
    assert PeerConnections(per_address=512, in_all=100).most == 50, "never more than half of all"
    for i in range(4):
        peers.leave(f"2001:db8:1:1::{i}")
        peers.leave(f"2001:db8:1:2::{i}")
        peers.leave("9.9.9.9")
    for i in range(1, 9):
        peers.leave(f"2001:db8:1:{i}00::")
    assert not peers.counts
