"""What tests of all rooms use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


@pytest.fixture
def run_apart() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine in a thread of its own: browser tests in this process may have left a loop running in
    this one."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(asyncio.run, coroutine).result()

    return run
