"""What a user installs: the wheel, built and unpacked elsewhere, brings data files and migrations along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("bithaul-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(folder / "site")
    assert not [n for n in names if "__pycache__" in n or n.startswith(("tests/", "runs/"))]
    return folder / "site"


def bithaul(unpacked: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bithaul", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=unpacked.parent,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
    )


def test_the_wheel_trains_end_to_end(unpacked: Path, tmp_path: Path) -> None:
    """Catches data files and migrations that only exist in a checkout."""
    where = subprocess.run(
        [sys.executable, "-c", "import bithaul; print(bithaul.__file__)"],
        capture_output=True,
        text=True,
        cwd=unpacked.parent,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        check=True,
    )
    assert where.stdout.startswith(str(unpacked)), "the checkout was tested, not the wheel"
    run = tmp_path / "run"
    done = bithaul(
        unpacked, "up", "--dir", str(run), "--examples", "300", "--budget-tokens", "4000", "--json"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["versions"] > 1
    assert set(result["updates_by_worker"]) == {"worker-1", "worker-2"}
