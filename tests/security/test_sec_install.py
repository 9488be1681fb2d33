"""SEC-57: the lines of the install page, run by real shells; the commands they call are recorders."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bithaul.coordinator.queries.installer import install_lines
from bithaul.coordinator.queries.wheel import wheel_name

SECRET = "bhw_" + "s3cret'\"$(touch pwned)`touch pwned`"
BASE = "http://host'; touch pwned; $(touch pwned):5000"
NAMES = [
    "w1",
    "a b",
    "a'; touch pwned; '",
    'a"; touch pwned; "',
    "$(touch pwned)",
    "`touch pwned`",
    "a\ntouch pwned\n",
    "a && touch pwned",
    "--allow-insecure-lan",
    "\u2019; touch pwned #",
]

RECORDER = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$BITHAUL_CLIENT_SECRET" "$@" >> "$RECORD"
printf '\\n\\0' >> "$RECORD"
"""
DOCKER = RECORDER + 'exec "${@: -3}"\n'


def run(folder: Path, text: str) -> list[list[str]]:
    """What was called: command, secret in the environment, arguments."""
    tools, inside = folder / "tools", folder / ".bithaul" / "env" / "bin"
    for directory in (tools, inside):
        directory.mkdir(parents=True)
    for path in (tools / "python3", tools / "pip", tools / "bithaul", inside / "pip", inside / "bithaul"):
        path.write_text(RECORDER)
        path.chmod(0o755)
    (tools / "docker").write_text(DOCKER)
    (tools / "docker").chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RECORD": str(folder / "record"),
    }
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-c", text], cwd=folder, env=environment, capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr
    calls = (folder / "record").read_bytes().decode().split("\0\n\0")
    return [call.split("\0") for call in calls if call]


@pytest.mark.parametrize("kind", ["bash", "docker"])
@pytest.mark.parametrize("name", NAMES)
def test_sec_57_a_real_shell_takes_every_value_as_text(tmp_path, kind, name):
    """Wrong result: a name or an address that runs, or a secret among the arguments of any command."""
    calls = run(tmp_path, getattr(install_lines(BASE, worker=name, secret=SECRET), kind))
    assert not list(tmp_path.rglob("pwned"))
    for command, secret, *arguments in calls:
        assert secret == SECRET, command
        assert not any(SECRET in argument for argument in arguments), command
    assert [call[0] for call in calls] == [{"bash": "python3"}.get(kind, "docker"), "pip", "bithaul"]
    pip, worker = calls[-2][2:], calls[-1][2:]
    assert pip == ["install", "-q", f"{BASE}/install/{wheel_name()}"]
    assert worker[worker.index("--url") + 1] == BASE
    assert worker[worker.index("--client-id") + 1] == name


@pytest.mark.parametrize("quote", ["'", "\u2018", "\u2019", "\u201a", "\u201b"])
def test_sec_57_powershell_closes_no_literal_early(quote):
    """Wrong result: one of the five marks PowerShell takes for a single quote, not doubled."""
    text = install_lines("https://train.example", worker=f"a{quote}; calc", secret="s").powershell
    assert f"'a{quote}{quote}; calc'" in text
    assert f"a{quote};" not in text
