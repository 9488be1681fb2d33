"""A real model in a rehearsal: it learns, the same seed gives the same bits, and poison is poison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bithaul.cli.main import run
from bithaul.corpus.build import build_corpus
from bithaul.corpus.example import Example
from bithaul.errors import InvalidInput
from bithaul.simulation.real import Real
from bithaul.simulation.scenario import SCENARIOS

WORDS = ["stop", "fuel", "dallas", "route", "eta", "load", "break", "north"]
TINY = """
hidden_size = 32
intermediate_size = 64
num_layers = 1
num_heads = 2
context_length = 64
"""
Simulate = Callable[..., dict[str, object]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    examples = [Example(f"{a} {b}", "navigate", (("city", a),)) for a in WORDS for b in WORDS]
    build_corpus(tmp_path / "corpus", examples[:56], examples[56:], max_tokens=65, seed=1, min_frequency=1)
    return tmp_path / "corpus"


@pytest.fixture
def simulate(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Simulate:
    """`bithaul simulate --corpus` with two workers on a calm day for some 8,000 tokens."""
    torch.set_num_threads(1)
    (tmp_path / "tiny.toml").write_text(TINY)

    def ask(*arguments: str) -> dict[str, object]:
        with pytest.raises(SystemExit) as done:
            run(
                [
                    *("simulate", "--scenario", "calm", "--workers", "2", "--corpus", str(corpus)),
                    *("--preset", str(tmp_path / "tiny.toml"), "--budget-tokens", "8000", "--json"),
                    *arguments,
                ]
            )
        assert not done.value.code
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    return ask


def test_it_learns_and_the_same_seed_is_the_same_run(simulate: Simulate) -> None:
    """Catches a rehearsal that computes nothing, ends before its budget, or depends on the clock."""
    first, again = simulate(), simulate()
    assert first["replay_identical"] is True
    assert float(str(first["loss_last"])) < 0.85 * float(str(first["loss_first"]))
    assert 7900 < float(str(first["tokens"])) < 8400
    assert int(str(first["versions"])) > 5
    assert (first["digest"], first["heldout_loss"]) == (again["digest"], again["heldout_loss"])
    assert simulate("--seed", "1")["digest"] != first["digest"]


def test_poison_of_each_kind_arrives_and_is_judged(simulate: Simulate) -> None:
    """Catches poison that poisons nothing, and a NaN that reaches the weights."""
    nan = simulate("--poisoned", "1", "--poison", "nan")
    assert nan["verdicts"]["rejected"] > 0  # type: ignore[index]
    assert float(str(nan["loss_last"])) < float(str(nan["loss_first"]))
    flipped = simulate("--poisoned", "1")
    assert flipped["judged"]["poisoned"]["reports"] > 0  # type: ignore[index]
    assert float(str(flipped["loss_last"])) > float(str(nan["loss_last"])) + 0.5


def test_the_usual_codec_of_a_rule_is_taken(simulate: Simulate) -> None:
    sparse = simulate("--rule", "sparse_ef", "--budget-tokens", "1500")
    assert (sparse["codec"], sparse["replay_identical"]) == ("topk-2bit-v1", True)
    assert (
        simulate("--rule", "sparse_ef", "--codec", "int4-block-v1", "--budget-tokens", "1500")["codec"]
        == "int4-block-v1"
    )


def test_less_than_a_batch_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    real = Real(corpus, preset=str(tmp_path / "tiny.toml"), workers=2)
    with pytest.raises(InvalidInput, match="at least one batch"):
        real.planned(SCENARIOS["calm"], tokens=1.0, steps=5)
