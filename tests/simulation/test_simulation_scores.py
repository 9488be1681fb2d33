"""The loss score in a rehearsal with a real model: who copies weighs less, and a toy says that it cannot."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bithaul.cli.main import run
from bithaul.corpus.build import build_corpus
from bithaul.corpus.example import Example
from bithaul.errors import InvalidInput

TINY = """
hidden_size = 32
intermediate_size = 64
num_layers = 1
num_heads = 2
context_length = 64
"""
Simulate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and a corpus with words that few examples have: who read them is known by them."""
    folder, draw = tmp_path_factory.mktemp("scores"), random.Random(1)
    words = [f"{a}{b}" for a in "bcdfghklmnprstvz" for b in ("a", "ali", "o", "omu", "e", "eni", "u", "ura")]
    said = [" ".join(draw.choices(words, k=8)) for _ in range(1300)]
    examples = [Example(text, "navigate", ()) for text in dict.fromkeys(said)]
    build_corpus(folder / "corpus", examples[:1200], examples[1200:], max_tokens=65, seed=1, min_frequency=1)
    (folder / "tiny.toml").write_text(TINY)
    return folder


@pytest.fixture
def simulate(folder: Path, capsys: pytest.CaptureFixture[str]) -> Simulate:
    def ask(*arguments: str) -> dict[str, Any]:
        torch.set_num_threads(1)
        with pytest.raises(SystemExit) as done:
            run(
                [
                    *("simulate", "--scenario", "calm", "--corpus", str(folder / "corpus"), "--steps", "8"),
                    *("--preset", str(folder / "tiny.toml"), "--gate", "score", "--json", *arguments),
                ]
            )
        assert not done.value.code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return ask


def test_a_machine_that_copies_weighs_less_and_honest_ones_do_not(simulate: Simulate) -> None:
    """Catches a score that finds nothing, one that accuses the machine that was copied, and a service that
    the rehearsal does not run."""
    found = simulate("--workers", "4", "--poisoned", "1", "--poison", "copy", "--budget-tokens", "60000")
    honest, copier = found["judged"]["honest"], found["judged"]["poisoned"]
    assert copier["scored"] >= 6
    assert honest["scored"] >= 18
    assert copier["doubted"] == 1
    assert honest["doubted"] == 0
    assert found["replay_identical"] is True


def test_the_toy_says_that_it_cannot(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a rehearsal whose scores are noise and look like a result."""
    with pytest.raises(InvalidInput, match="cannot be rehearsed on the toy"):
        make(gates=("score",))
    with pytest.raises(SystemExit) as done:
        run(["simulate", "--gate", "score", "--workers", "2", "--hours", "0.1"])
    assert done.value.code
    assert "name a real model's data with --corpus" in capsys.readouterr().err
