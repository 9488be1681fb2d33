"""Noise on any data: labels and values stay, words around them change, equal seeds give equal noise."""

from __future__ import annotations

import pytest

from bithaul.corpus.example import Example
from bithaul.corpus.truckmate.generator import generate
from bithaul.corpus.truckmate.noise import LEVELS
from bithaul.errors import UnknownName
from bithaul.evaluation.robustness import noisy, parts_of, word_error_rate

ROUTE = Example(
    "Take me to the Flying J in Dallas, then find I am tired in Waco",
    "navigate",
    (("chain", "Flying J"), ("stops", ("Dallas", "Waco")), ("task", "I am tired")),
)
SPOKEN = Example("take i forty to the break room by two", "navigate", (("via", "I-40"),))


def rate(level: str, examples: list[Example]) -> float:
    changed = noisy(examples, level, seed=3)
    return word_error_rate([e.text for e in examples], [e.text for e in changed])


def test_values_and_labels_stay() -> None:
    """All of these words but "Waco" are misheard or lost where they belong to no value."""
    for seed in range(300):
        for level in LEVELS:
            (found,) = noisy([ROUTE], level, seed=seed)
            assert (found.intent, found.slots) == (ROUTE.intent, ROUTE.slots)
            for value in ("flying j", "dallas,", "waco", "i am tired"):
                assert f" {value} " in f" {found.text} ", found.text


def test_words_outside_values_change() -> None:
    """ "to" is heard as another word, "the" is lost, somebody says uh."""
    said = {word for seed in range(300) for word in noisy([ROUTE], "heavy", seed=seed)[0].text.split()}
    assert {"too", "two", "uh", "please"} <= said
    assert any(" the " not in noisy([ROUTE], "heavy", seed=seed)[0].text for seed in range(50))


def test_a_value_said_otherwise_keeps_its_number() -> None:
    """The first "i" would be an eye or lost, and "to" beside the number a two."""
    for seed in range(300):
        text = noisy([SPOKEN], "heavy", seed=seed)[0].text
        assert "i forty to" in text, text
        assert "by two" in text, text
    assert [part.words for part in parts_of(SPOKEN)][:3] == [("take",), ("i", "forty", "to"), ("the",)]


def test_a_number_that_is_no_value_is_never_interrupted() -> None:
    example = Example("wake me at four thirty two ok", "alarm")
    for seed in range(200):
        assert "four thirty two" in noisy([example], "heavy", seed=seed)[0].text


def test_equal_seeds_give_equal_noise() -> None:
    examples = list(generate(count=50, seed=4, split="heldout"))
    assert noisy(examples, "heavy", seed=1) == noisy(examples, "heavy", seed=1)
    assert noisy(examples, "heavy", seed=1) != noisy(examples, "heavy", seed=2)
    assert noisy(examples[:20], "heavy", seed=1) == noisy(examples, "heavy", seed=1)[:20]


def test_heavy_is_more_than_light() -> None:
    examples = list(generate(count=400, seed=4, split="heldout"))
    assert 0.1 < rate("light", examples) < 0.3 < rate("heavy", examples) < 0.6


def test_word_errors_by_hand() -> None:
    """One replaced, one lost, one put in, of five words; capitals do not count."""
    assert word_error_rate(["Go to Dallas", "stop now"], ["go two", "stop uh now"]) == pytest.approx(3 / 5)
    assert word_error_rate(["a b c"], ["A b  c"]) == 0.0
    assert word_error_rate(["a b c"], [""]) == 1.0


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(UnknownName, match="light, heavy"):
        noisy([ROUTE], "deafening", seed=0)
