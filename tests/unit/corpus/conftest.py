"""One full corpus a session: 50,000 training and 2,000 held-out examples with their origins."""

from __future__ import annotations

import pytest

from bithaul.corpus.tokenizer import Tokenizer
from bithaul.corpus.truckmate.generator import Traced, trace

SEED = 7


@pytest.fixture(scope="session")
def train() -> list[Traced]:
    return list(trace(count=50_000, seed=SEED, split="train"))


@pytest.fixture(scope="session")
def heldout() -> list[Traced]:
    return list(trace(count=2_000, seed=SEED, split="heldout"))


@pytest.fixture(scope="session")
def truckmate(train: list[Traced]) -> Tokenizer:
    """The tokenizer of the full corpus."""
    return Tokenizer.train([found.example for found in train])
