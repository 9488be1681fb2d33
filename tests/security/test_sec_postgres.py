"""Two coordinator processes on one PostgreSQL database: what one of them ends, the other refuses at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx2
import pytest

from bithaul.coordinator.identity.throttle import Limits
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE

pytestmark = [pytest.mark.postgres, pytest.mark.process]

WIDE = Limits(per_client_and_address=100_000, per_address=100_000, in_all=100_000)
SECOND = """
import sys
from pathlib import Path
from bithaul.coordinator.app import create_app
from bithaul.coordinator.clock import SystemClock
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.identity.throttle import Limits
from bithaul.coordinator.server import Server, bind
from bithaul.coordinator.settings import Settings

class Still(SystemClock):
    def now(self):
        return float(sys.argv[3])

settings = Settings(directory=Path(sys.argv[1]), port=int(sys.argv[2]))
listener = bind("127.0.0.1", 0)
app = create_app(open_coordinator(settings, clock=Still()), limits=Limits(100_000, 100_000, 100_000))
Server(app, settings, on_ready=lambda: print(listener.getsockname()[1], flush=True)).run([listener])
"""


@dataclass
class Pair:
    """`site` is a coordinator in this process, `other` asks one in a process of its own, as its address."""

    site: object
    other: httpx2.Client

    @property
    def doors(self) -> tuple[httpx2.Client, httpx2.Client]:
        return self.site.http, self.other

    def statuses(self, http: httpx2.Client, headers: dict[str, str], scope: str) -> set[int]:
        """Of every protected operation that this scope may call; keys are not changed by it."""
        wanted = [o for o in self.site.operations() if o.scope == scope]
        assert len(wanted) >= 5
        return {http.request(o.method, o.path, json=o.body, headers=headers).status_code for o in wanted}

    def mint(self, http: httpx2.Client, client_id: str) -> dict[str, str]:
        answer = http.post(
            "/connect/token",
            data={"grant_type": "client_credentials"},
            auth=(client_id, self.site.secrets[client_id]),
        )
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}


@pytest.fixture
def pair(make_site: Callable[..., object], postgres: object) -> Iterator[Pair]:
    url = postgres.fresh()
    site = make_site(WIDE, database_url=url)
    site.make_run()
    process = subprocess.Popen(
        [sys.executable, "-c", SECOND, str(site.directory), str(site.port), str(site.clock.time)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BITHAUL_DATABASE_URL": url},
    )
    try:
        line = process.stdout.readline()
        assert line, "the second coordinator did not start"
        base, host = f"http://127.0.0.1:{line.strip()}", f"127.0.0.1:{site.port}"
        with httpx2.Client(base_url=base, timeout=20, trust_env=False, headers={"Host": host}) as other:
            yield Pair(site, other)
    finally:
        process.kill()
        process.communicate()


CHANGES = {
    "rotate": ("POST", "/rotate", {"grace_seconds": 0}),
    "disable": ("POST", "/disable", None),
    "delete": ("DELETE", "", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_sec_03_what_one_process_ends_another_refuses_with_the_next_request(pair: Pair, change: str) -> None:
    """Wrong result: a credential, or the verdict on a token, that a process keeps in its memory.

    Each process ends what the other has just accepted, tokens minted by either, and the clock stands still.
    """
    site = pair.site
    admin = site.admin()
    method, path, body = CHANGES[change]
    for client_id, here, there in (("w1", *pair.doors), ("w2", *pair.doors[::-1])):
        site.client(client_id)
        tokens = [pair.mint(door, client_id) for door in pair.doors]
        for token in tokens:
            for door in pair.doors:
                assert not {401, 403} & pair.statuses(door, token, WORKER_SCOPE)
        done = here.request(method, f"/api/keys/{client_id}{path}", headers=admin, json=body)
        assert done.status_code in (200, 204), done.text
        for token in tokens:
            assert pair.statuses(there, token, WORKER_SCOPE) == {401}
            assert pair.statuses(here, token, WORKER_SCOPE) == {401}
        refused = there.post(
            "/connect/token",
            data={"grant_type": "client_credentials"},
            auth=(client_id, site.secrets[client_id]),
        )
        assert refused.status_code == 401, refused.text


def test_sec_03_an_operator_rotated_in_one_process_is_out_of_the_other(pair: Pair) -> None:
    from bithaul.coordinator.identity.clients import rotate_client

    old = pair.site.admin()
    assert 401 not in pair.statuses(pair.other, old, ADMIN_SCOPE)
    pair.site.secrets["operator"] = rotate_client(pair.site.c, "operator")
    assert pair.statuses(pair.other, old, ADMIN_SCOPE) == {401}
    fresh = pair.mint(pair.other, "operator")
    assert pair.site.http.get("/api/keys", headers=fresh).status_code == 200


@pytest.mark.parametrize("how", ["signed out", "revoked token", "disabled person"])
def test_sec_03_a_session_or_token_ended_in_one_process_is_over_in_the_other(pair: Pair, how: str) -> None:
    from bithaul.coordinator.identity.people import disable_person

    site = pair.site
    if how == "revoked token":
        token = site.worker("w1")
        assert pair.other.get("/work", headers=token).status_code != 401
        form = {"token": token["Authorization"].removeprefix("Bearer ")}
        done = site.http.post("/connect/revoke", data=form, auth=("w1", site.secrets["w1"]))
        assert done.status_code == 200, done.text
        assert pair.other.get("/work", headers=token).status_code == 401
        return
    site.person("ann")
    browser = site.browser()
    browser.enter()

    def seen() -> int:
        cookies = "; ".join(f"{name}={value}" for name, value in kept.items())
        status = pair.other.get("/account", headers={"Cookie": cookies}).status_code
        pair.other.cookies.clear()
        return status

    kept = dict(browser.cookies)
    assert seen() == 200
    if how == "signed out":
        browser.submit(browser.get("/account"), "/account/sign-out")
    else:
        disable_person(site.c, "ann")
    assert seen() in (302, 303)
