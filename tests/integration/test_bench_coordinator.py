"""`bithaul bench coordinator`: a small crowd against a real coordinator; its figures hang together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bithaul.simulation.crowd import percentiles, slope


@pytest.mark.process
def test_a_small_crowd_is_answered_and_counted() -> None:
    """Catches a key that is gone, a crowd that does nothing, requests that fail unnoticed."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bithaul", "bench", "coordinator", "--json"),
            *("--workers", "8", "--seconds", "4", "--task-seconds", "1", "--turns", "1"),
            *("--preset", "small", "--vocab", "64"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for crowd in (found["small"], found["large"]):
        assert crowd["errors"] == 0
        for kind in ("heartbeat", "lease"):
            asked = crowd["requests"][kind]
            assert asked["count"] > 0
            assert 0 < asked["p50_ms"] <= asked["p95_ms"] <= asked["p99_ms"] <= asked["max_ms"]
        assert crowd["memory"]["rss_mib_peak"] >= crowd["memory"]["rss_mib_end"] > 10
    assert found["small"]["verdicts"]["accepted"] >= found["small"]["requests"]["submit"]["count"] > 0
    assert found["large"]["uploads"] > 0
    assert found["large"]["requests"]["release"]["count"] > 0
    transfers = found["transfers"]
    assert transfers["down_mb"] > transfers["up_mb"] > 1
    assert transfers["down_mb_per_second"] > 0
    assert transfers["up_mb_per_second"] > 0


def test_percentiles_are_by_nearest_rank() -> None:
    found = percentiles([n / 1000 for n in range(100, 0, -1)])
    assert found == {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0, "max_ms": 100.0}
    assert percentiles([0.002])["p99_ms"] == 2.0


def test_slope_is_that_of_the_line() -> None:
    assert slope([(0, 1.0), (1, 3.0), (2, 5.0)]) == pytest.approx(2.0)
    assert slope([(3, 1.0)]) == 0.0
