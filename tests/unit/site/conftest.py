"""A site over a real SQLite file with a pretended run, asked in this process by somebody signed in."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bithaul.coordinator.api.cookies import Cookies
from bithaul.coordinator.app import create_app
from bithaul.coordinator.context import Coordinator, open_coordinator
from bithaul.coordinator.settings import load_settings

sys.path.insert(0, str(Path(__file__).parents[2] / "browser"))
from pretend import enter, pretend_run

NOW = 1_795_000_000.0


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="bithaul-site-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def make_coordinator(folder: Path) -> Iterator[Callable[..., Coordinator]]:
    made: list[Coordinator] = []

    def make(*, versions: int = 0, weights: bool = False) -> Coordinator:
        settings = load_settings(folder / f"run{len(made)}", disk_reserve_bytes=0)
        c = open_coordinator(settings, clock=Clock())
        made.append(c)
        if versions:
            pretend_run(c, count=versions, weights=weights)
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


@pytest.fixture(scope="module")
def visit() -> Callable[[Coordinator], TestClient]:
    return client_of
