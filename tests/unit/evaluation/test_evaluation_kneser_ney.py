"""Kneser-Ney against dictionaries and the paper's equations, token by token, and as a distribution."""

from __future__ import annotations

import importlib.util
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from bithaul.errors import InvalidInput
from bithaul.evaluation.kneser_ney import KneserNey

VOCAB = 12
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "kneser_ney.py"


def stream(length: int, seed: int) -> np.ndarray:
    """Skewed tokens with some memory, so that counts of 1 to 4 occur; the last two ids never do."""
    rng = np.random.default_rng(seed)
    found = [0]
    for _ in range(length - 1):
        found.append(int(rng.geometric(0.35) - 1 + found[-1] * (rng.random() < 0.4)) % (VOCAB - 2))
    return np.array(found)


class ByHand:
    """Chen and Goodman's equations, one token at a time."""

    def __init__(self, tokens: list[int], order: int) -> None:
        self.order = order
        raw = [
            Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)) for n in range(1, order + 1)
        ]
        self.counts: list[dict[tuple[int, ...], int]] = []
        for n in range(1, order):
            before: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in raw[n]:
                before[gram[1:]].add(gram[0])
            self.counts.append({gram: len(before[gram]) for gram in raw[n - 1]})
        self.counts.append(dict(raw[-1]))
        self.discounts = [self.discount(counts) for counts in self.counts]

    @staticmethod
    def discount(counts: dict[tuple[int, ...], int]) -> list[float]:
        n = [sum(c == k for c in counts.values()) for k in range(5)]
        if not n[1] or not n[2] or not n[3]:
            return [0.0, 0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        found = [0.0] + [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
        return found if all(0 < found[k] <= k for k in (1, 2, 3)) else [0.0, 0.5, 1.0, 1.5]

    def probability(self, context: tuple[int, ...], token: int) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        below = self.probability(context[1:], token) if context else 1 / VOCAB
        counts, discount = self.counts[len(context)], self.discounts[len(context)]
        after = {gram: c for gram, c in counts.items() if gram[:-1] == context}
        total = sum(after.values())
        if not total:
            return below
        taken = {gram: min(discount[min(c, 3)], c) for gram, c in after.items()}
        own = after.get((*context, token), 0) - taken.get((*context, token), 0.0)
        return (own + sum(taken.values()) * below) / total


@pytest.mark.parametrize(("length", "seed", "order"), [(400, 1, 4), (60, 2, 3), (9, 3, 2), (300, 4, 1)])
def test_as_by_hand(length: int, seed: int, order: int) -> None:
    """Raw counts in place of continuation counts, one discount, or a wrong back-off differ."""
    learned, told = stream(length, seed), stream(50, seed + 100)
    told[20:22] = VOCAB - 1  # never seen
    found = KneserNey.fit(learned, vocab_size=VOCAB, order=order).probabilities(told)
    by_hand = ByHand(learned.tolist(), order)
    wanted = [by_hand.probability(tuple(told[:i].tolist()), int(told[i])) for i in range(len(told))]
    assert found == pytest.approx(wanted, rel=1e-12)


def test_discounts_are_estimated_not_only_fallen_back_on() -> None:
    """The case above must reach equation 17."""
    assert all(d != [0.0, 0.5, 1.0, 1.5] for d in ByHand(stream(400, 1).tolist(), 4).discounts[1:])


@pytest.mark.parametrize("context", [[], [0], [3, 1, 2], [0, 0, 0, 1], [11, 11, 11], [2, 11, 0]])
def test_probabilities_sum_to_one(context: list[int]) -> None:
    """After contexts that were seen, seen in part, and never seen."""
    model = KneserNey.fit(stream(400, 1), vocab_size=VOCAB)
    found = [model.probabilities(np.array([*context, token]))[-1] for token in range(VOCAB)]
    assert sum(found) == pytest.approx(1.0, abs=1e-12)
    assert min(found) > 0


def test_it_learns_from_context() -> None:
    """A unigram model gives every token of a cycle 1/3."""
    cycle = np.array([0, 1, 2] * 50)
    found = KneserNey.fit(cycle, vocab_size=3).probabilities(np.array([0, 1, 2, 0, 1, 2]))
    assert found[3:].min() > 0.9


def test_the_benchmark_counts_words_and_line_ends(tmp_path: Path) -> None:
    """Empty lines end too, and words beyond the vocabulary are one unknown word."""
    spec = importlib.util.spec_from_file_location("kneser_ney", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    (tmp_path / "train.txt").write_text(" a a <unk> b \n\n a c\n", encoding="utf-8")
    words = benchmark.words_of(tmp_path / "train.txt")
    assert words == ["a", "a", "<unk>", "b", "<eos>", "<eos>", "a", "c", "<eos>"]
    found = benchmark.measure(words, [*words, "d"], 3)
    assert (found["vocab"], found["tokens"], found["unknown_share"]) == (3, 10, 0.4)
    assert benchmark.measure(words, words, 100)["vocab"] == 5


def test_what_cannot_be_counted() -> None:
    with pytest.raises(InvalidInput, match="at least 4 tokens"):
        KneserNey.fit(np.array([1, 2, 3]), vocab_size=5)
    with pytest.raises(InvalidInput, match="0 to 4"):
        KneserNey.fit(np.array([1, 2, 3, 5]), vocab_size=5)
    with pytest.raises(InvalidInput, match="0 to 4"):
        KneserNey.fit(np.array([1, 2, 3, 4]), vocab_size=5).probabilities(np.array([-1]))
