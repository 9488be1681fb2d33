"""`bithaul evaluate intents`: last line JSON, any format, one clear line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bithaul.cli.main import run
from bithaul.corpus.example import Example


def evaluate(
    capsys: pytest.CaptureFixture[str], directory: Path, data: Path, *more: str
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run(["evaluate", "intents", "--dir", str(directory), "--data", str(data), *more])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def jsonl(tmp_path: Path, requests: list[Example]) -> Path:
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(e.as_record()) + "\n" for e in requests), encoding="utf-8")
    return file


def test_the_last_line_is_the_result(
    capsys: pytest.CaptureFixture[str], fitted_dir: Path, jsonl: Path
) -> None:
    code, out, err = evaluate(capsys, fitted_dir, jsonl, "--json")
    record = json.loads(out.splitlines()[-1])
    assert code == 0
    assert {k: record[k] for k in ("accuracy", "slot_f1", "exact_match", "examples")} == {
        "accuracy": 1.0,
        "slot_f1": 1.0,
        "exact_match": 1.0,
        "examples": 20,
    }
    assert record["per_intent"]["navigate"] == {
        "n": 10,
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
        "exact": 1.0,
    }
    assert record["confusion"] == record["unknown_intents"] == []
    assert record["seconds"] > 0
    assert "navigate" in err


def test_tables_for_people(capsys: pytest.CaptureFixture[str], random_dir: Path, jsonl: Path) -> None:
    code, out, _ = evaluate(capsys, random_dir, jsonl, "--mistakes", "1")
    assert code == 0
    for expected in ("per intent", "hos_status", "taken for", "accuracy", "said   "):
        assert expected in out


def test_tsv_without_slots_unknown_intents_and_limit(
    capsys: pytest.CaptureFixture[str], fitted_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "requests.tsv"
    file.write_text("tell me a joke\toos\nbrew me a coffee\tcoffee\ntell me a joke\toos\n", encoding="utf-8")
    code, out, err = evaluate(capsys, fitted_dir, file, "--json", "--limit", "2")
    record = json.loads(out.splitlines()[-1])
    assert (code, record["examples"], record["accuracy"]) == (0, 2, 0.5)
    assert record["unknown_intents"] == ["coffee"]
    assert "warning: 1 intents" in err


def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], fitted_dir: Path, tmp_path: Path, jsonl: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "hello", "intent": "navigate"}\n{"text": \n', encoding="utf-8")
    text = tmp_path / "plain.txt"
    text.write_text("only words\n", encoding="utf-8")
    for directory, data, code, says in (
        (fitted_dir, tmp_path / "none.tsv", 4, "none.tsv"),
        (fitted_dir, bad, 2, "bad.jsonl:2"),
        (fitted_dir, text, 2, "plain text"),
        (tmp_path / "no-run", jsonl, 4, "no-run"),
        (tmp_path, jsonl, 4, "train first"),
    ):
        found, out, err = evaluate(capsys, directory, data)
        assert (found, out) == (code, "")
        assert says in err
        assert err.count("\n") == 1


def test_a_folder_as_a_file_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for option, name in (("--confusion", "matrix.csv"), ("--plot", "plot.svg")):
        (tmp_path / name).mkdir()
        code, out, err = evaluate(
            capsys, tmp_path / "no-run", tmp_path / "no-data", option, str(tmp_path / name)
        )
        assert (code, out) == (2, "")
        assert f"{name} is a folder" in err


def test_everything_at_once(
    capsys: pytest.CaptureFixture[str], fitted_dir: Path, jsonl: Path, tmp_path: Path
) -> None:
    """All keys with their figures, extra requests that count only for the ranking, and both files."""
    oos = tmp_path / "oos.tsv"
    oos.write_text("sing me a song\toos\nwhat is love\tanything\n", encoding="utf-8")
    plot, matrix = tmp_path / "plot.svg", tmp_path / "matrix.csv"
    more = ["--oos", str(oos), "--noise", "all", "--plot", str(plot), "--confusion", str(matrix), "--json"]
    code, out, err = evaluate(capsys, fitted_dir, jsonl, *more)
    record = json.loads(out.splitlines()[-1])
    assert code == 0
    assert record["examples"] == 20
    scope = record["out_of_scope"]
    assert (scope["score"], scope["in_scope"], scope["out_of_scope"]) == ("out_of_scope_probability", 18, 4)
    assert scope["auroc"] == scope["candidates"]["out_of_scope_probability"]
    assert record["calibration"]["examples"] == 20
    assert len(record["calibration"]["bins"]) == 15
    assert list(record["noise"]) == ["light", "heavy"]
    assert record["noise"]["heavy"]["word_error_rate"] > record["noise"]["light"]["word_error_rate"]
    for expected in ("AUROC", "ECE", "at temperature", "heavy noise"):
        assert expected in err
    assert plot.read_text(encoding="utf-8").startswith("<svg")
    assert matrix.read_text(encoding="utf-8").splitlines()[1].startswith("hos_status,3,0")


def test_a_score_by_name_and_one_level(
    capsys: pytest.CaptureFixture[str], fitted_dir: Path, jsonl: Path
) -> None:
    code, out, _ = evaluate(capsys, fitted_dir, jsonl, "--oos-score", "text", "--noise", "light", "--json")
    record = json.loads(out.splitlines()[-1])
    assert (code, record["out_of_scope"]["score"], list(record["noise"])) == (0, "text", ["light"])


def test_wrong_options_are_told_before_the_work(
    capsys: pytest.CaptureFixture[str], fitted_dir: Path, jsonl: Path, tmp_path: Path
) -> None:
    for more, says in (
        (["--oos-score", "best"], "max_probability"),
        (["--plot", str(tmp_path / "plot.png")], ".svg"),
        (["--confusion", str(tmp_path / "gone" / "matrix.csv")], "no folder"),
    ):
        code, out, err = evaluate(capsys, fitted_dir, jsonl, *more)
        assert (code, out) == (2, "")
        assert says in err
        assert err.count("\n") == 1


def test_nothing_in_scope_or_known_is_said(
    capsys: pytest.CaptureFixture[str], fitted_dir: Path, tmp_path: Path
) -> None:
    file, plot = tmp_path / "requests.tsv", tmp_path / "plot.svg"
    file.write_text("brew me a coffee\tcoffee\n", encoding="utf-8")
    code, out, err = evaluate(capsys, fitted_dir, file, "--oos", str(file), "--plot", str(plot), "--json")
    record = json.loads(out.splitlines()[-1])
    assert (code, record["out_of_scope"], record["calibration"]) == (0, None, None)
    assert "in scope" in err
    assert "is not written" in err
    assert not plot.exists()
