"""The largest preset at its real size: 469 MB of weights through the whole loop, within bounds of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "large_model.py"
NEEDED = 8 * 2**30  # bytes of memory: the worker needs about 4 GB, the files of the run are cached


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(900)
def test_a_large_worker_fetches_trains_uploads_and_is_merged(tmp_path: Path) -> None:
    """Catches a coordinator that holds vectors while it serves, receives or merges.

    The benchmark itself fails unless version 2 exists and differs from version 1.
    """
    if psutil.virtual_memory().available < NEEDED:
        pytest.skip("less than 8 GB of memory are free")
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--threads", "1", "--batch", "8", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["vocabulary"] == 5174
    assert result["parameters"] > 115e6
    assert 460 < result["weights_mb"] < 490
    assert result["values_changed"] > 0.9 * result["parameters"]
    assert result["state"] == "finished"
    assert result["coordinator_peak_mib"] * 2**20 < 2.5e9
    # "below one copy per concurrent transfer" asks for 1.0; pieces of 1 MiB need a few hundredths.
    assert result["growth_per_download_in_copies"] < 0.1
