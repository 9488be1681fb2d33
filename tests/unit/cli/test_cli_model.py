"""`bithaul model show`: the figures of requirements 1, from presets, TOML files, runs and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bithaul.cli.main import run
from bithaul.model.config import ModelConfig
from bithaul.model.layout import layout_of


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run(["model", "show", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize(
    ("preset", "millions", "layers", "hidden"),
    [("small", 6.6, 5, 256), ("medium", 57.2, 13, 512), ("large", 117.3, 12, 768)],
)
def test_presets(
    capsys: pytest.CaptureFixture[str], preset: str, millions: float, layers: int, hidden: int
) -> None:
    """Sizes calculated in training.md; a forgotten tensor or an untied head changes them."""
    code, out, _ = show(capsys, preset, "--vocab", "5174", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["parameters"] / 1e6 == pytest.approx(millions, abs=0.05)
    assert (record["layers"], record["hidden_size"], record["vocab_size"]) == (layers, hidden, 5174)
    assert record["embedding_parameters"] == 5174 * hidden
    per_layer = 4 * hidden**2 + 3 * hidden * record["intermediate_size"]
    assert record["ternary_parameters"] == layers * per_layer
    gains = record["parameters"] - record["ternary_parameters"] - record["embedding_parameters"]
    assert 0 < gains < 0.01 * record["parameters"]
    assert len(record["layout_hash"]) == 64
    assert record["warnings"] == []


def test_the_hash_tells_models_apart(capsys: pytest.CaptureFixture[str]) -> None:
    hashes = [
        json.loads(show(capsys, *arguments, "--json")[1])["layout_hash"]
        for arguments in (["small"], ["small", "--vocab", "5173"], ["medium"], ["small"])
    ]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


def test_a_toml_file_with_warnings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(
        "hidden_size = 96\nintermediate_size = 256\nnum_layers = 2\nnum_heads = 4\ncontext_length = 32\n",
        encoding="utf-8",
    )
    code, out, _ = show(capsys, str(file), "--vocab", "100", "--json")
    record = json.loads(out)
    assert (code, record["vocab_size"], record["heads"]) == (0, 100, 4)
    assert "96" in record["warnings"][0]


def test_a_run_and_its_checkpoint(
    capsys: pytest.CaptureFixture[str], random_dir: Path, config: ModelConfig
) -> None:
    for path in (random_dir, random_dir / "model", random_dir / "model" / "model.safetensors"):
        code, out, _ = show(capsys, str(path), "--json")
        record = json.loads(out)
        assert code == 0
        assert record["layout_hash"] == layout_of(config).hash
        assert record["metadata"]["version"] == "3"


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = show(capsys, "small")
    assert code == 0
    assert "parameters             6," in out
    assert "layout_hash" in out


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("tiny", 2, "small, medium, large"),
        ("missing.toml", 2, "missing.toml"),
        ("missing.safetensors", 4, "missing.safetensors"),
        (".", 4, "model.safetensors"),
    ],
)
def test_what_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
    says: str,
) -> None:
    """An unknown name is never a fallback, and never a traceback."""
    monkeypatch.chdir(tmp_path)
    found, out, err = show(capsys, name, "--json")
    assert found == code
    assert says in err
    assert err.count("\n") == 1
    assert json.loads(out)["detail"] in err
