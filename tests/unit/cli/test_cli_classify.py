"""`bithaul classify`: one JSON object per request, also in a pipe that waits for each answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bithaul.cli.main import run


def test_one_request(capfdbinary: pytest.CaptureFixture[bytes], fitted_dir: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["classify", "--dir", str(fitted_dir), "take me to the Petro", "in Köln"])
    out, err = capfdbinary.readouterr()
    assert (ended.value.code or 0, err) == (0, b"")
    record = json.loads(out)
    assert record["text"] == "take me to the Petro in Köln"
    assert record["intent"] == "navigate"
    assert record["slots"] == {"chain": "Petro", "city": "Köln"}
    assert out.count(b"\n") == 1


def test_a_cut_request_is_answered_with_a_warning(
    capfdbinary: pytest.CaptureFixture[bytes], fitted_dir: Path
) -> None:
    """10,000 words: the answer is still one JSON line, and what was left out is not hidden."""
    with pytest.raises(SystemExit) as ended:
        run(["classify", "--dir", str(fitted_dir), "tell me " * 5_000])
    out, err = capfdbinary.readouterr()
    assert (ended.value.code or 0, out.count(b"\n"), err.count(b"\n")) == (0, 1, 1)
    assert json.loads(out)["intent"]
    assert b"its end was left out" in err


def test_no_model_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["classify", "--dir", str(tmp_path / "nowhere"), "hello"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (4, "", 1)
    assert "nowhere" in err


@pytest.mark.process
def test_a_pipe_gets_one_answer_per_line_at_once(fitted_dir: Path) -> None:
    """Answers held back for a full batch would hang this test; a skipped empty line would shift the rest."""
    command = [sys.executable, "-m", "bithaul", "classify", "--dir", str(fitted_dir), "--threads", "1", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        for text in ("take me to dallas", "", "tell me a joke"):
            child.stdin.write(text.encode() + b"\n")
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["text"] == text
        fast = [f"load number {i} is late" if i % 3 else "" for i in range(300)]
        child.stdin.write("\n".join(fast).encode())
        child.stdin.close()
        answers = [json.loads(line) for line in child.stdout.read().splitlines()]
        assert child.stderr.read() == b""
    assert child.returncode == 0
    assert [answer["text"] for answer in answers] == fast
    assert answers[7]["slots"] == {"load_id": "7", "reason": "late"}
