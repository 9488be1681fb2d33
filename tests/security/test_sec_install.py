"""SEC-57: the lines of the install page, run by real shells; the commands they call are recorders.

PowerShell's lines are run where there is a `pwsh`. Everywhere they are read twice: by `powershell.py`, which
was written from the language's specification, and by a grammar that others wrote (`powershell_tree.py`).
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
import powershell_tree

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
    put(RECORDER, tools / "python3", tools / "pip", tools / "bithaul", inside / "pip", inside / "bithaul")
    put(DOCKER, tools / "docker")
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "-c", text], cwd=folder, env=environment(folder), capture_output=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    return calls(folder)


def put(script: str, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)


def environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{folder / 'tools'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "RECORD": str(folder / "record"),
    }


def calls(folder: Path) -> list[list[str]]:
    found = (folder / "record").read_bytes().decode().split("\0\n\0")
    return [call.split("\0") for call in found if call]


def assert_secret_in_environment(called: list[list[str]]) -> None:
    for command, secret, *arguments in called:
        assert secret == SECRET, command
        assert not any(SECRET in argument for argument in arguments), command


@pytest.mark.parametrize("kind", ["bash", "docker"])
@pytest.mark.parametrize("name", NAMES)
def test_sec_57_a_real_shell_takes_every_value_as_text(tmp_path, kind, name):
    """Wrong result: a name or an address that runs, or a secret among the arguments of any command."""
    called = run(tmp_path, getattr(install_lines(BASE, worker=name, secret=SECRET), kind))
    assert not list(tmp_path.rglob("pwned"))
    assert_secret_in_environment(called)
    assert [call[0] for call in called] == [{"bash": "python3"}.get(kind, "docker"), "pip", "bithaul"]
    pip, worker = called[-2][2:], called[-1][2:]
    assert pip == ["install", "-q", f"{BASE}/install/{wheel_name()}"]
    assert worker[worker.index("--url") + 1] == BASE
    assert worker[worker.index("--client-id") + 1] == name


@pytest.fixture(scope="session")
def pwsh(tmp_path_factory) -> str:
    """A PowerShell that hands arguments on as they are (7.3 and later), on a system that runs `RECORDER`."""
    program = shutil.which("pwsh")
    if program is None or os.name == "nt":
        pytest.skip("no pwsh on PATH, or Windows: PowerShell's lines are only read, not run")
    home = tmp_path_factory.mktemp("home")
    asked = [program, "-NoProfile", "-NonInteractive", "-Command", "$PSNativeCommandArgumentPassing"]
    said = subprocess.run(asked, env=environment(home), capture_output=True, text=True, timeout=120)
    if said.stdout.strip() != "Standard":
        pytest.skip("pwsh is older than 7.3 and changes quotes in what it hands to a program")
    return program


@pytest.mark.parametrize("name", NAMES)
def test_sec_57_a_real_powershell_takes_every_value_as_text(tmp_path, pwsh, name):
    """Wrong result: as in bash. Both names of a file are there, should `\\` not part folders off Windows."""
    inside = [tmp_path / ".bithaul" / "env" / "Scripts" / tool for tool in ("pip", "bithaul")]
    as_one_name = [Path(f"{tmp_path}\\.bithaul\\env\\Scripts\\{tool}") for tool in ("pip", "bithaul")]
    put(RECORDER, tmp_path / "tools" / "py", *inside, *as_one_name)
    lines = tmp_path / "lines.ps1"
    lines.write_text(install_lines(BASE, worker=name, secret=SECRET).powershell, encoding="utf-8")
    done = subprocess.run(
        [pwsh, "-NoProfile", "-NonInteractive", "-File", str(lines)],
        cwd=tmp_path,
        env=environment(tmp_path) | {"POWERSHELL_TELEMETRY_OPTOUT": "1"},
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not list(tmp_path.rglob("pwned"))
    called = calls(tmp_path)
    assert_secret_in_environment(called)
    py, pip, worker = (call[2:] for call in called)
    assert py == ["-m", "venv", f"{tmp_path}\\.bithaul\\env"]
    assert pip == ["install", "-q", f"{BASE}/install/{wheel_name()}"]
    told = ["worker", "--url", BASE, "--client-id", name, "--state-dir", f"{tmp_path}\\.bithaul\\{name}"]
    assert worker == [*told, "--allow-insecure-lan"]


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


def assert_parsed(lines, *, base, worker, secret):
    """The same tree as with plain values, and every value whole in a literal."""
    root = powershell_tree.parse(lines.powershell)
    lan = lines.powershell.endswith(" --allow-insecure-lan")
    usual = install_lines(f"http{'' if lan else 's'}://h", worker="w", secret="s").powershell
    assert powershell_tree.shape(root) == powershell_tree.shape(powershell_tree.parse(usual))
    assert powershell_tree.around(root) == powershell_tree.around(powershell_tree.parse(usual))
    values = [secret, f"{base}/install/{wheel_name()}", base, worker, worker]
    assert powershell_tree.literals(root) == [powershell_tree.plain(value) for value in values]


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
    assert_parsed(lines, base=base, worker=name, secret=SECRET + name)


MARKS = st.sampled_from(QUOTES + "$`;&|()@#{}\n\r\\ -")
ANY = st.lists(MARKS | st.characters(codec="utf-8"), min_size=1, max_size=20).map("".join)


@given(worker=ANY, secret=ANY)
def test_sec_57_powershell_takes_any_text_as_text(worker, secret):
    lines = install_lines("http://h:1", worker=worker, secret=secret)
    assert_told(lines, base="http://h:1", worker=worker, secret=secret)


HARD = st.sampled_from(["--%", "$(calc)", "$env:PATH", "'; calc; '", "\u2019; calc \u2018", "@'\n", "\n'@\n"])
WITHOUT_NUL = st.lists(
    MARKS | HARD | st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20
).map("".join)
PATHS = WITHOUT_NUL.map("https://h/".__add__)


@given(base=PATHS, worker=WITHOUT_NUL, secret=WITHOUT_NUL)
def test_sec_57_a_grammar_of_others_sees_any_text_as_a_literal(base, worker, secret):
    """Wrong result: a value that ends its literal, or that adds a command, a variable or a statement."""
    lines = install_lines(base, worker=worker, secret=secret)
    assert_parsed(lines, base=base, worker=worker, secret=secret)


def test_sec_57_the_grammar_sees_the_commands_we_mean():
    """Wrong result: a shape that is the same for all values, and already holds more than it should."""
    root = powershell_tree.parse(install_lines("https://h", worker="w", secret="s").powershell)
    assert powershell_tree.around(root).splitlines() == [
        "$env:BITHAUL_CLIENT_SECRET = ''",
        'py -m venv "$HOME\\.bithaul\\env"',
        "& \"$HOME\\.bithaul\\env\\Scripts\\pip\" install -q ''",
        "& \"$HOME\\.bithaul\\env\\Scripts\\bithaul\" worker --url '' "
        "--client-id '' --state-dir \"$HOME\\.bithaul\\$('')\"",
    ]
    assert len(powershell_tree.texts(root, "assignment_expression")) == 1
    assert len(powershell_tree.texts(root, "command")) == 3
    assert powershell_tree.texts(root, "variable") == ["$env:BITHAUL_CLIENT_SECRET"] + 4 * ["$HOME"]
    assert powershell_tree.texts(root, "sub_expression") == ["$('w')"]


@pytest.mark.parametrize("mark", powershell.SINGLE)
def test_sec_57_the_grammar_sees_a_quote_that_is_not_doubled(mark):
    """Wrong result: a reading to which some mark that PowerShell takes for a quote is a letter."""
    meant = powershell_tree.shape(powershell_tree.parse(f"& x 'a{mark}{mark}; calc #'"))
    assert powershell_tree.shape(powershell_tree.parse(f"& x 'a{mark}; calc #'")) != meant
    with pytest.raises(powershell_tree.NotPowerShell):
        powershell_tree.parse(f"& x 'a{mark}b'")


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
