"""`bithaul evaluate perplexity`: last line JSON, any model, one clear line for what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bithaul.cli.main import run
from bithaul.corpus.example import Example

KEYS = [
    "documents",
    "tokens",
    "words",
    "bytes",
    "vocabulary",
    "unknown_tokens",
    "unknown_share",
    "unknown_word_share",
    "perplexity",
    "perplexity_known",
    "perplexity_unfloored",
    "word_perplexity",
    "bits_per_byte",
    "bits_per_byte_spelled",
    "floor",
    "floored_tokens",
    "floored_share",
    "floor_mass",
    "context",
    "stride",
    "framing",
    "kneser_ney",
    "ratio",
    "seconds",
]


def perplexity(
    capsys: pytest.CaptureFixture[str], directory: Path, data: Path, *more: str
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run(["evaluate", "perplexity", "--dir", str(directory), "--data", str(data), *more])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def text(tmp_path: Path, requests: list[Example]) -> Path:
    file = tmp_path / "requests.txt"
    file.write_text("".join(f"{request.text}\n" for request in requests), encoding="utf-8")
    return file


def test_the_last_line_is_the_result(
    capsys: pytest.CaptureFixture[str], fitted_dir: Path, text: Path
) -> None:
    code, out, err = perplexity(capsys, fitted_dir, text, "--train", str(text), "--json")
    record = json.loads(out.splitlines()[-1])
    assert code == 0
    assert list(record) == KEYS
    assert (record["documents"], record["floor"]) == (20, 1e-6)
    assert record["bytes"] == text.stat().st_size
    assert record["unknown_word_share"] == pytest.approx(5 / record["words"], abs=1e-6)
    assert 1 < record["perplexity"] < record["vocabulary"]
    assert record["ratio"] == pytest.approx(
        record["perplexity"] / record["kneser_ney"]["perplexity"], rel=1e-3
    )
    assert "perplexity" in err


def test_lines_for_people_and_options(
    capsys: pytest.CaptureFixture[str], random_dir: Path, tmp_path: Path, text: Path
) -> None:
    code, out, _ = perplexity(capsys, random_dir, text)
    assert code == 0
    for expected in ("[UNK] counted as a token", "bits per byte", "raised to the floor of 1e-06", "--train"):
        assert expected in out
    docs = tmp_path / "docs.jsonl"
    docs.write_text('{"body": "take me to dallas"}\n{"body": "tell me a joke"}\n', encoding="utf-8")
    more = ["--text-field", "body", "--limit", "1", "--floor", "0", "--stride", "3", "--json"]
    code, out, err = perplexity(capsys, random_dir, docs, *more)
    record = json.loads(out.splitlines()[-1])
    assert (record["documents"], record["words"], record["floor"], record["stride"]) == (1, 4, 0, 3)
    assert record["kneser_ney"] is record["ratio"] is None
    assert "no floor" in err


def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], fitted_dir: Path, tmp_path: Path, text: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(fitted_dir / "model", bare)
    (bare / "tokenizer.json").unlink()
    for directory, data, more, code, says in (
        (fitted_dir, tmp_path / "none.txt", [], 4, "none.txt"),
        (tmp_path / "no-run", text, [], 4, "no-run"),
        (tmp_path, text, [], 4, "train first"),
        (bare, text, [], 4, "copy it from the run"),
        (fitted_dir, text, ["--floor", "0.5"], 2, "floor"),
        (fitted_dir, text, ["--stride", "1000"], 2, "stride"),
        (fitted_dir, text, ["--text-field", "body"], 2, "--text-field"),
        (fitted_dir, text, ["--train", str(tmp_path / "gone.txt")], 4, "gone.txt"),
    ):
        found, out, err = perplexity(capsys, directory, data, *more)
        assert (found, out) == (code, ""), says
        assert says in err
        assert err.count("\n") == 1
