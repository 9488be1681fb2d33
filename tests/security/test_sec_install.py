"""SEC-57: the lines of the install page, run by real shells; the commands they call are recorders.

No PowerShell can be had where these tests run, so its lines are read by `powershell.py`, which was written
from the language's specification.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.coordinator.queries.installer import install_lines
from bithaul.coordinator.queries.wheel import wheel_name

sys.path.insert(0, str(Path(__file__).parent))
import powershell

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


QUOTES = "'\"\u2018\u2019\u201a\u201b\u201c\u201d\u201e"
HOSTILE = [
    *NAMES,
    "a\u2018\u201b; calc '",
    "$env:PATH",
    "$(calc)",
    "`n",
    '"; calc; "',
    "'' ; calc ''",
    "--%",
    "@x",
]
HOSTILE += [f"a{mark}; calc #" for mark in QUOTES] + [f"{mark}{mark}; calc" for mark in QUOTES]


def assert_told(lines, *, base, worker, secret):
    """The PowerShell lines do what they should and nothing else, with every value as one word."""
    told = powershell.read(lines.powershell, home="H")
    assert told.environment == {"BITHAUL_CLIENT_SECRET": secret}
    venv, pip, bithaul = told.calls
    assert venv == ["py", "-m", "venv", "H\\.bithaul\\env"]
    inside = "H\\.bithaul\\env\\Scripts\\"
    assert pip == [inside + "pip", "install", "-q", f"{base}/install/{wheel_name()}"]
    wanted = [inside + "bithaul", "worker", "--url", base, "--client-id", worker, "--state-dir"]
    assert bithaul[:8] == [*wanted, f"H\\.bithaul\\{worker}"]
    assert bithaul[8:] in ([], ["--allow-insecure-lan"])


@pytest.mark.parametrize("name", HOSTILE)
def test_sec_57_powershell_takes_every_value_as_text(name):
    """Wrong result: a name, an address or a secret that runs, or that is more than one argument."""
    base = f"https://host{name}:5000"
    try:
        lines = install_lines(base, worker=name, secret=SECRET + name)
    except ValueError:  # no URL, for the parser that asks whether it is plain http
        base = "https://host'; calc; $(calc)"
        lines = install_lines(base, worker=name, secret=SECRET + name)
    assert_told(lines, base=base, worker=name, secret=SECRET + name)


MARKS = st.sampled_from(QUOTES + "$`;&|()@#{}\n\r\\ -")
ANY = st.lists(MARKS | st.characters(codec="utf-8"), min_size=1, max_size=20).map("".join)


@given(worker=ANY, secret=ANY)
def test_sec_57_powershell_takes_any_text_as_text(worker, secret):
    assert_told(
        install_lines("http://h:1", worker=worker, secret=secret),
        base="http://h:1",
        worker=worker,
        secret=secret,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a 'it''s' \u2018b\u2019\u2018c\u2019", [["a", "it's", "b\u2018c"]]),
        ('& "$HOME\\x" "$(\'y\')z"', [["H\\x", "yz"]]),
        ("a b\r\n\nc", [["a", "b"], ["c"]]),
    ],
)
def test_sec_57_the_reader_knows_the_language(text, said):
    assert powershell.read(text, home="H").calls == said


@pytest.mark.parametrize(
    "text",
    [
        "a; b",
        "a | b",
        "a 'b'; c",
        "a 'b'c",
        "a $(b)",
        "a `b",
        "a {b}",
        "'a'",
        "a 'b",
        "a \u2018b",
        'a "$x"',
        "a #b",
    ],
)
def test_sec_57_the_reader_takes_nothing_else_for_text(text):
    """Wrong result: a reader that lets what got out of its quotes pass for an argument."""
    with pytest.raises(powershell.NotUnderstood):
        powershell.read(text)


@pytest.mark.parametrize("quote", ["'", "\u2018", "\u2019", "\u201a", "\u201b"])
def test_sec_57_powershell_closes_no_literal_early(quote):
    """Wrong result: one of the five marks PowerShell takes for a single quote, not doubled."""
    text = install_lines("https://train.example", worker=f"a{quote}; calc", secret="s").powershell
    assert f"'a{quote}{quote}; calc'" in text
    assert f"a{quote};" not in text
