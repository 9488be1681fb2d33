"""SEC-54 with three processes: a coordinator, two hundred people who sign in, and a worker that measures.

None shares an interpreter with another, so what is measured is the coordinator and the machine.
"""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import httpx2
import pytest

from bithaul.coordinator.clock import SystemClock
from bithaul.coordinator.database import fleet
from bithaul.coordinator.identity import passwords
from bithaul.coordinator.identity.throttle import Limits
from bithaul.coordinator.services.runner import standard_services

HERE = Path(__file__).parent
PASSWORD = "correct horse battery staple"
PEOPLE = 200
BURSTS = 30
EVERY = 0.02  # seconds from heartbeat to heartbeat, as of five hundred workers
ENOUGH = 300  # heartbeats beside the crowd, so that three may be slower than the 99th of a hundred


@pytest.fixture
def served(make_site):
    """A run folder of real time, and the way into it; the coordinator itself is not running."""
    site = make_site(Limits(), with_run=True, trusted_proxies=("127.0.0.1",))
    site.stop()
    site.clock = SystemClock()
    site.start()
    return site


def sign_in(site, number: int) -> str:
    """The whole request of a person who has opened the page and filled it in, at an own address."""
    address = f"10.0.0.{number}"
    browser = site.browser(**{"X-Forwarded-For": address})
    page = browser.get("/signin").text
    token = html.unescape(re.search(r'name="csrf_token" value="([^"]*)"', page)[1])
    body = urlencode({"csrf_token": token, "next": "/account", "name": "ann", "password": PASSWORD})
    lines = [
        "POST /signin HTTP/1.1",
        f"Host: 127.0.0.1:{site.port}",
        "Accept: text/html",
        "Connection: close",
        f"Cookie: {'; '.join(f'{name}={value}' for name, value in browser.cookies.items())}",
        f"X-Forwarded-For: {address}",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def start_coordinator(site) -> subprocess.Popen[str]:
    """`bithaul coordinator` on the folder and port of `site`, once it listens."""
    (site.directory / "bithaul.toml").write_text('trusted_proxies = ["127.0.0.1"]\ndisk_reserve_bytes = 0\n')
    command = [sys.executable, "-m", "bithaul", "coordinator", "--json", "--dir", str(site.directory)]
    with (site.directory / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(site.port)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ,
        )
    assert process.stdout.readline(), (site.directory / "log").read_text()
    return process


async def heartbeats(url: str, headers: dict[str, str], crowd: subprocess.Popen[str]) -> list[float]:
    """Seconds from when each was due until its answer, as long as the crowd lasts.

    From when it was due and at a fixed pace: a coordinator that hangs is asked as often as one that does not.
    The connections are open before, as those of workers are: theirs rest half a minute, and 75 s are allowed.
    """
    taken = []
    async with httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=30) as http:

        async def one(due: float) -> None:
            assert (await http.post("/heartbeat", json={})).status_code == 200
            taken.append(time.monotonic() - due)

        await asyncio.gather(*(http.post("/heartbeat", json={}) for _ in range(20)))  # what httpx2 keeps open
        began, tasks = time.monotonic(), []
        while crowd.poll() is None:
            due = began + len(tasks) * EVERY
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(one(due)))
        await asyncio.gather(*tasks)
    return taken


def test_sec_54_who_must_come_back_costs_next_to_nothing(site, monkeypatch):
    """Wrong result: of two hundred, those who are refused still ask rows and take threads."""
    site.person()
    browser = site.browser()
    page = browser.get("/signin")
    monkeypatch.setattr(passwords, "QUEUE", 0)
    read = site.c.database.read
    reads = []
    services = {service.name for service in standard_services(site.c)}  # they read by the clock, whoever asks

    def noted():
        if threading.current_thread().name not in services:
            reads.append(1)
        return read()

    monkeypatch.setattr(site.c.database, "read", noted)
    for _ in range(40):  # pages are warmed up after a start, which reads too
        seen = len(reads)
        time.sleep(0.5)
        if len(reads) == seen:
            break
    reads.clear()
    answer = browser.submit(page, "/signin", name="ann", password=PASSWORD)
    assert (answer.status_code, answer.headers["retry-after"], reads) == (503, "5", [])
    unread = browser.ask("POST", "/signin", content=b"x" * 100_000)
    assert unread.status_code == 503, "before the form is read: it has no token and is too large"
    monkeypatch.undo()
    assert browser.submit(page, "/signin", name="ann", password=PASSWORD).status_code == 303


def test_sec_54_a_form_that_comes_slowly_holds_no_place(site):
    """Wrong result: a few connections that send half a form keep everybody out."""
    site.person()
    whole = re.sub("Cookie: .*\r\n", "", sign_in(site, 1))  # with one the form is read for its token first
    lines = []
    for _ in range(passwords.QUEUE + 5):
        line = socket.create_connection(("127.0.0.1", site.port), timeout=10)
        line.sendall(whole[:-5].encode())
        lines.append(line)
    try:
        assert site.browser().sign_in().status_code == 303
    finally:
        for line in lines:
            line.close()


@pytest.mark.slow
def test_sec_54_two_hundred_sign_ins_do_not_stop_a_heartbeat(served, run_apart):
    """p99 of what workers ask stays under 200 ms while 200 people sign in at once, burst after burst."""
    site = served
    site.person()
    headers = site.worker()
    with site.c.database.write() as connection:
        fleet.insert_worker(connection, "w1", now=time.time())
    told = {"host": "127.0.0.1", "port": site.port, "bursts": BURSTS}
    told["requests"] = [sign_in(site, number) for number in range(PEOPLE)]
    site.stop()
    coordinator = start_coordinator(site)
    try:
        crowd = subprocess.Popen(
            [sys.executable, str(HERE / "crowd.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        crowd.stdin.write(json.dumps(told))
        crowd.stdin.close()
        taken = sorted(run_apart(heartbeats(f"http://127.0.0.1:{site.port}", headers, crowd)))
        found = json.loads(crowd.stdout.read())
        crowd.stdout.close()
    finally:
        coordinator.terminate()
        coordinator.wait(20)
        coordinator.stdout.close()
        site.start()
    assert crowd.returncode == 0
    assert found["statuses"].keys() == {"303", "503"}, found  # some got in and most were told to come back
    assert sum(found["statuses"].values()) == PEOPLE * BURSTS
    assert len(taken) >= ENOUGH, f"{len(taken)} heartbeats prove little"
    assert taken[int(len(taken) * 0.99)] < 0.2, [round(value, 3) for value in taken[-20:]]
