"""Rehearsals on a file system where a sync costs nothing, small enough for seconds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bithaul.simulation.scenario import Rehearsal, Scenario

MEMORY = Path("/dev/shm")
CALM = Scenario("test", workers=3, hours=1.0, quiet_hours=3.0)
Make = Callable[..., Rehearsal]


@pytest.fixture
def make() -> Iterator[Make]:
    """A rehearsal of three machines for an hour, without faults; `changes` are fields of its scenario."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    with ExitStack() as stack:

        def build(scenario: Scenario = CALM, **changes: object) -> Rehearsal:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bithaul-test-", dir=place))
            return Rehearsal(replace(scenario, **changes), Path(folder))  # type: ignore[arg-type]

        yield build
