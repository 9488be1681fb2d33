"""`bithaul corpus`: the three verbs, from nothing to a corpus folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bithaul.cli.corpus import app
from bithaul.corpus.augment import Augmentation
from bithaul.corpus.build import CorpusManifest
from bithaul.corpus.generator import GENERATOR_VERSION
from bithaul.errors import InvalidData, InvalidInput


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_generate_then_tokenize(tmp_path: Path) -> None:
    text, tokens = str(tmp_path / "text"), str(tmp_path / "tokens")
    report = json.loads(call("generate", "--out", text, "--count", "300", "--heldout", "40", "--json"))
    assert report["examples"] == 300
    assert len(report["shards"]) == 2
    report = json.loads(call("tokenize", text, "--out", tokens, "--json"))
    manifest = CorpusManifest.load(tmp_path / "tokens")
    assert report == manifest.model_dump(mode="json")
    assert (manifest.train_examples, manifest.heldout_examples, manifest.generator_version) == (
        300,
        40,
        GENERATOR_VERSION,
    )
    assert "300 training examples" in call("tokenize", text, "--out", tokens)


def test_tokenize_other_data_with_its_own_heldout(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("go home\tgo\nstop now\tstop\n")
    (tmp_path / "valid.tsv").write_text("stop\tstop\n")
    arguments = [
        str(tmp_path / "train.tsv"),
        "--heldout",
        str(tmp_path / "valid.tsv"),
        "--out",
        str(tmp_path / "c"),
    ]
    report = json.loads(call("tokenize", *arguments, "--min-frequency", "1", "--json"))
    assert report["heldout"][0]["examples"] == 1


def test_augmentation_reaches_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("go home now\tgo\nstop it now\tstop\n" * 10)
    arguments = ["--copies", "3", "--spell", "0.5", "--drop", "0.25", "--swap", "0.1", "--word-pieces", "40"]
    call("tokenize", str(tmp_path / "train.tsv"), "--out", str(tmp_path / "c"), *arguments)
    manifest = CorpusManifest.load(tmp_path / "c")
    assert manifest.augmentation == Augmentation(copies=3, swap=0.1, spell=0.5, drop=0.25)
    assert manifest.train_examples == 60
    assert manifest.unknown_share > 0


def test_a_corpus_never_replaces_its_own_data(tmp_path: Path) -> None:
    """The manifest would be overwritten, and with it the way back."""
    text = tmp_path / "text"
    call("generate", "--out", str(text), "--count", "20", "--heldout", "5")
    before = (text / "manifest.json").read_bytes()
    with pytest.raises(InvalidInput, match="the data itself"):
        call("tokenize", str(text), "--out", f"{text}/../text")
    assert (text / "manifest.json").read_bytes() == before


def test_import_counts_and_complains(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "go", "intent": "a", "slots": {"x": "go"}}\n')
    report = json.loads(call("import", str(path), "--json"))
    assert report == {"kind": "intents", "examples": 1, "intents": {"a": 1}, "slots": {"x": 1}}
    assert "1 labelled requests" in call("import", str(path))
    path.write_text("{}\n")
    with pytest.raises(InvalidData, match=r"a\.jsonl:1"):
        call("import", str(path))
