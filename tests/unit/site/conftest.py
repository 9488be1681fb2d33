"""A site over a real SQLite file with a pretended run, asked in this process; the operator is injected."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from bithaul.coordinator.app import create_app
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.settings import load_settings
from bithaul.errors import Unauthorized

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


class Ada:
    name = "ada"


class HeaderDoor:
    """Lets in who says so in a header, as no real door would."""

    async def admin(self, request: Request) -> Ada:
        if request.headers.get("x-test-admin") != "ada":
            raise Unauthorized("Sign in first.")
        return Ada()

    def csrf(self, request: Request) -> str:
        return "the-token"


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
    client = TestClient(create_app(c, door=HeaderDoor()), base_url="http://127.0.0.1", follow_redirects=False)
    client.headers["x-test-admin"] = "ada"
    return client


@pytest.fixture(scope="module")
def site(c: Coordinator) -> TestClient:
    return client_of(c)


@pytest.fixture
def visit() -> Callable[[Coordinator], TestClient]:
    return client_of
