"""How many connections a coordinator takes: what it wants, within what the system lets it have."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bithaul.coordinator.server import MAX_CONNECTIONS, OTHER_FILES

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of POSIX systems")


def connections(soft: int, hard: int) -> list[int]:
    """What a process with these limits of open files answers, and its soft limit after it."""
    code = (
        "import resource; from bithaul.coordinator.server import most_connections as most;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        "print(most(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def test_the_soft_limit_is_raised_as_far_as_needed() -> None:
    """Catches a thousand workers of whom every second is told 503, and accepting without files left."""
    import resource

    wanted, hard = MAX_CONNECTIONS + OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may open {hard} files at most")
    assert connections(512, hard) == [MAX_CONNECTIONS, wanted]


def test_a_hard_limit_leaves_files_for_the_rest() -> None:
    assert connections(300, 1000) == [1000 - OTHER_FILES, 1000]
    assert connections(200, 260) == [64, 260]
