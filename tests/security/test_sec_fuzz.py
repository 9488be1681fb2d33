"""SEC-61: schemathesis, a client that knows nothing but the published document, tries the whole API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bithaul.coordinator.identity.throttle import Limits

WIDE = Limits(per_client_and_address=1_000_000, per_address=1_000_000, in_all=1_000_000)
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"


def fuzz(site, folder: Path, who: str, *, examples: int) -> int:
    """How many requests were tried, the same in every run; a failure is raised as the tool words it."""
    headers = {"nobody": dict, "worker": site.worker, "admin": site.admin}[who]()
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{site.c.settings.base_url}/openapi.json"]
    command += ["--checks", CHECKS, "--max-examples", str(examples), "--no-color"]
    command += ["--generation-deterministic", "--continue-on-failure"]
    command += ["--warnings", "off"]
    for name, value in headers.items():
        command += ["--header", f"{name}: {value}"]
    hooks = {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | hooks,
        timeout=3000,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return int(re.search(r"(\d+) generated", said)[1])


WHO = ("nobody", "worker", "admin")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("who", WHO)
def test_sec_61_nothing_undocumented_and_no_5xx(make_site, tmp_path: Path, who: str) -> None:
    """Wrong result: a defect that some input brings to light, or an answer that no client was told of."""
    tried = fuzz(make_site(WIDE, with_run=True), tmp_path, who, examples=5)
    assert tried > 300, "a run that tries nothing proves nothing"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("who", WHO)
def test_sec_61_for_longer(make_site, tmp_path: Path, who: str) -> None:
    tried = fuzz(make_site(WIDE, with_run=True), tmp_path, who, examples=300)
    print(f"{tried} requests as {who}")  # shown by -rP
    assert tried > 3000
