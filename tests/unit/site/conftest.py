"""A site over a real SQLite file with a pretended run, asked in this process by somebody signed in."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.app import create_app
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.identity.people import create_person, find_by_name
from bithaul.coordinator.identity.sessions import Sessions
from bithaul.coordinator.identity.tables import people
from bithaul.coordinator.settings import load_settings

sys.path.insert(0, str(Path(__file__).parents[2] / "browser"))
from pretend import pretend_run

NOW = 1_795_000_000.0


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@dataclass(frozen=True)
class Entered:
    """A session that the admin site has accepted."""

    cookie: str
    csrf: str


def enter(c: Coordinator, name: str = "ada") -> Entered:
    sessions = Sessions(c)
    create_person(c, name)
    with c.database.write() as connection:
        connection.execute(update(people).where(people.c.name == name).values(must_change=False))
        found = find_by_name(connection, name)
        assert found is not None
        sessions.start(connection, found[0], replaces=None, address="127.0.0.1", agent="test")
    [session] = sessions.live(found[0].id)
    with c.database.write() as connection:
        cookie = sessions.renew(connection, session.sid, admin=True)
    return Entered(cookie, sessions.csrf(cookie))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="bithaul-site-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def make_coordinator(folder: Path) -> Iterator[Callable[..., Coordinator]]:
    made: list[Coordinator] = []

    def make(*, versions: int = 0) -> Coordinator:
        settings = load_settings(folder / f"run{len(made)}", disk_reserve_bytes=0)
        c = open_coordinator(settings, clock=Clock())
        made.append(c)
        if versions:
            pretend_run(c, count=versions)
        return c

    yield make
    for c in made:
        c.close()


@pytest.fixture(scope="module")
def c(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    """A run with 120 versions. Tests that change it make their own."""
    return make_coordinator(versions=120)


def client_of(c: Coordinator) -> TestClient:
    """Signed in as ada, with the token in a header as the pages' script sends it."""
    entered = enter(c)
    client = TestClient(create_app(c), base_url="http://127.0.0.1", follow_redirects=False)
    client.headers["cookie"] = f"{Cookies(c.settings).session}={entered.cookie}"
    client.headers["x-csrf-token"] = entered.csrf
    return client


@pytest.fixture(scope="module")
def site(c: Coordinator) -> TestClient:
    return client_of(c)


@pytest.fixture
def visit() -> Callable[[Coordinator], TestClient]:
    return client_of
