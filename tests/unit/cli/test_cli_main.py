"""The door itself: wrong usage, a full disk, a closed pipe, Ctrl-C, SIGTERM: the codes that are promised."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bithaul.cli.main import run
from bithaul.errors import OutOfDisk
from bithaul.model.checkpoint import save_checkpoint
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, `error` and `detail` of a command with `--json`; the same is one line for people."""
    with pytest.raises(SystemExit) as ended:
        run([*arguments, "--json"])
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err.splitlines()[-1] == f"bithaul: {record['detail']}"
    return int(ended.value.code or 0), record["error"], record["detail"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["up", "--workers", "0"], "--workers"),
        (["up", "--budget-tokens", "0"], "at least one token"),
        (["evaluate", "intents", "--noise", "zzz"], "zzz"),
        (["frobnicate"], "frobnicate"),
        (["keys", "create"], "Missing argument"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    """Catches Typer's box on standard error, and nothing for the program that reads JSON."""
    code, name, detail = refused(capsys, *arguments)
    assert (code, name) == (2, "invalid_input")
    assert says in detail
    assert detail.endswith("--help.")


def test_a_family_without_a_verb_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["keys"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (2, "")
    assert "rotate-signing" in out


def test_a_file_in_the_place_of_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "empty.tsv"
    file.touch()
    code, name, detail = refused(capsys, "corpus", "generate", "--out", str(file), "--count", "10")
    assert (code, name) == (2, "invalid_input")
    assert str(file) in detail


def test_what_the_system_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a traceback where nobody nearer has said what an `OSError` means."""

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error", str(tmp_path))

    monkeypatch.setattr("bithaul.cli.corpus.read_any", broken)
    code, name, detail = refused(capsys, "corpus", "import", str(tmp_path))
    assert (code, name) == (1, "error")
    assert f"{tmp_path}: Input/output error" in detail


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system without a free byte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs Linux and root")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.decode().strip()}")
    try:
        with (place / "filler").open("wb", buffering=0) as file:
            file.write(b"x" * 65_536)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_has_its_code(
    capsys: pytest.CaptureFixture[str], full_disk: Path, fitted_dir: Path, tmp_path: Path
) -> None:
    """Catches a traceback, another code, and a part of a file that stays on the full disk."""
    data = tmp_path / "data.tsv"
    data.write_text("tell me a joke\toos\n" * 20, encoding="utf-8")
    for arguments in (
        ["corpus", "generate", "--out", str(full_disk), "--count", "10"],
        ["corpus", "tokenize", str(data), "--out", str(full_disk)],
        [
            *("evaluate", "intents", "--dir", str(fitted_dir), "--data", str(data)),
            *("--confusion", str(full_disk / "matrix.csv")),
        ],
        ["keys", "create", "w1", "--dir", str(full_disk)],
    ):
        code, name, detail = refused(capsys, *arguments)
        assert (code, name) == (7, "out_of_disk"), arguments
        assert str(full_disk) in detail
        if arguments[0] != "keys":
            assert [path.name for path in full_disk.iterdir()] == ["filler"], arguments


def test_a_checkpoint_on_a_full_disk(full_disk: Path) -> None:
    config = ModelConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, context_length=16
    )
    vector = np.zeros(layout_of(config).size, np.float32)
    with pytest.raises(OutOfDisk, match=r"model\.safetensors"):
        save_checkpoint(full_disk / "model.safetensors", vector, config, metadata={})
    assert [path.name for path in full_disk.iterdir()] == ["filler"]


def process(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "bithaul", *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["up", "corpus"])
def test_a_stop_is_130_and_a_sentence(tmp_path: Path, verb: str, number: signal.Signals) -> None:
    """Catches a silent end, and -15 while `up` prepares."""
    place = tmp_path / "out"
    more = (
        ["generate", "--out", str(place), "--shard-size", "10"] if verb == "corpus" else ["--dir", str(place)]
    )
    with process(verb, *more, "--json") as child:
        deadline = time.monotonic() + 60
        while not place.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(number)
        try:
            out, err = child.communicate(timeout=60)
        finally:
            child.kill()
    assert (child.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "bithaul: stopped."
    assert "Traceback" not in err


@pytest.mark.process
@pytest.mark.parametrize("verb", ["classify", "help"])
def test_a_closed_pipe_is_141(fitted_dir: Path, verb: str) -> None:
    """Catches Typer's 1, Rich's 1, and Python's 120 for what is left in the buffer."""
    arguments = (
        ["classify", "--dir", str(fitted_dir), "--threads", "1", "-"] if verb == "classify" else ["--help"]
    )
    with process(*arguments) as child:
        assert child.stdout is not None
        child.stdout.close()
        child.stdout = None
        _, err = child.communicate("tell me a joke\n" * 3, timeout=60)
    assert (child.returncode, err) == (141, "")
