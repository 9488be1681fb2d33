"""`bithaul up` on plain text with real processes: it trains, and says how well the model predicts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


def write_lines(file: Path, count: int, *, seed: int) -> Path:
    """Sentences that can be learnt but for three choices of a few words each: 24 of them in all."""
    dice = random.Random(seed)
    names, verbs = ("ann", "bob"), ("sees", "hears", "likes")
    lines = [
        f"{dice.choice(names)} {dice.choice(verbs)} {dice.choice(names)} and nobody else at all today"
        for _ in range(count)
    ]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def test_plain_text_is_trained_and_its_perplexity_reported(up) -> None:
    """Catches an evaluation that takes lines for requests (it ended every run of text with an error)."""
    train = write_lines(up.root / "train.txt", 1500, seed=1)
    valid = write_lines(up.root / "valid.txt", 60, seed=2)
    recipe = up.root / "recipe.toml"
    recipe.write_text("batch_examples = 4\n", encoding="utf-8")
    session = up(
        *("--preset", str(up.model), "--train", str(train), "--valid", str(valid), "--workers", "1"),
        *("--recipe", str(recipe), "--budget-tokens", "120000", "--task-seconds", "1"),
    )
    code, result, err = session.finish()
    assert code == 0, err
    assert result["intent_accuracy"] is None
    assert result["slot_f1"] is None
    assert "asked" not in result
    assert result["heldout_examples"] == 60
    # Choices of 2, 3 and 2 in ten predictions cannot be known; before training all words are as likely.
    best = 12 ** (1 / 10)
    assert best * 0.95 < result["perplexity"] < 3
    assert "60 held-out lines" in err
