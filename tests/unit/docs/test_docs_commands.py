"""Commands in the documentation: those marked `<!-- tested -->` run, all others at least exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bithaul.cli.main import VERBS, build_app

WORDS = re.compile(r"(?:^|[|;&]\s*)(?:\w+=\S+\s+)*(?:\.venv/bin/)?bithaul\s+([^|;&]*)")


def commands(code: str) -> list[list[str]]:
    """The words after `bithaul` of each command in a block."""
    joined = code.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if not line.lstrip().startswith("#")]
    return [shlex.split(m[1], comments=True) for line in lines for m in WORDS.finditer(line)]


def complaint(words: list[str]) -> str | None:
    """What is wrong with a command line: a verb or an option that does not exist."""
    names = [verb.name for verb in VERBS]
    if not words or words[0].startswith("-"):
        return None if words in ([], ["--help"], ["--version"]) else f"no such option: {words}"
    if words[0] not in names:
        return f"no such verb: {words[0]}"
    command = typer.main.get_command(build_app(words[0])).commands[words[0]]
    rest = words[1:]
    if hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return f"no such verb: {' '.join(words[:2])}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    unknown = [w.split("=")[0] for w in rest if w.startswith("--") and w.split("=")[0] not in known]
    return f"{words[0]} has no {', '.join(unknown)}" if unknown else None


def test_every_command_exists(pages) -> None:
    """Catches: a page that tells people to type an option or verb that is gone or never was."""
    told = [(block.page, words) for block in pages.blocks() for words in commands(block.code)]
    assert len(told) > 15
    assert [(page, wrong) for page, words in told if (wrong := complaint(words))] == []


@pytest.mark.parametrize("words", [["train"], ["up", "--epochs", "3"], ["keys", "show"], ["--verbose"]])
def test_the_check_sees_what_is_wrong(words) -> None:
    """Catches: a check of commands that lets everything pass."""
    assert complaint(words)


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="the blocks are written for a POSIX shell")
def test_marked_blocks_run(pages, tmp_path, fitted_dir) -> None:
    """Catches: a command on a page that fails when a reader types it."""
    shutil.copytree(fitted_dir / "model", tmp_path / "runs" / "demo" / "model")
    blocks = [block for block in pages.blocks() if block.tested]
    assert {block.page for block in blocks} >= {
        "README.md",
        "docs/reference/cli.md",
        "docs/tutorial/first-run.md",
    }
    here = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{block.page}:\n{block.code}\n{done.stderr}"
        assert done.stdout.strip(), f"{block.page}:\n{block.code}"
