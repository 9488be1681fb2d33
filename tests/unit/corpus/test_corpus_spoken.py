"""Numbers of a request: everything it can mean, and nothing that only looks like it."""

from __future__ import annotations

import pytest

from bithaul.corpus.labels import LabelSet
from bithaul.corpus.spoken import are_said, readings, runs
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.corpus.truckmate.generator import Traced


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("load forty eight oh five", "4805"),
        ("load four eight two one", "4821"),
        ("load 4 8 2 1 is late", "4821"),
        ("load b 482", "482"),
        ("two hundred forty dollars", "240"),
        ("two hundred and forty bucks", "240"),
        ("a hundred twenty bucks", "120"),
        ("twelve hundred", "1200"),
        ("one thousand two hundred fifty", "1250"),
        ("$1,200.50", "1200"),
        ("5 hundred", "500"),
        ("forty five dollars and five cents", "05"),
        ("at six thirty p m", "30"),
        ("interstate two eighty seven", "287"),
        ("exit one oh one", "101"),
        ("twenty-one miles", "21"),
        ("6am", "6"),
    ],
)
def test_what_a_number_can_mean(text: str, means: str) -> None:
    assert means in readings(text)


@pytest.mark.parametrize(
    ("text", "not_that"),
    [
        ("two hundred forty dollars", {"244", "2040", "2", "200", "140"}),
        ("nine dollar toll", {"99", "90"}),
        ("forty five", {"405", "4"}),
        ("load 4821", {"482", "821"}),
        ("two loads and four drops", {"24"}),
        ("no number at all", {"0", "1"}),
    ],
)
def test_what_it_can_not_mean(text: str, not_that: set[str]) -> None:
    """A reading too many lets a number grow a digit; one number of two words must not fall apart."""
    assert not readings(text).keys() & not_that


def test_numbers_of_a_value() -> None:
    said = readings("at six thirty p m on the fifth")
    assert runs("6:30 pm") == ["6", "30"]
    assert are_said("6:30 pm", said)
    assert not are_said("6:35 pm", said)
    assert not are_said("30:6 pm", said)
    assert not are_said("6:06 pm", said)
    assert not are_said("630:30 pm", said)
    assert are_said("tonight", {})


def test_all_numbers_of_the_corpus_are_numbers_of_their_request(
    train: list[Traced], heldout: list[Traced]
) -> None:
    """A way to say a number that is not read would make its value impossible to answer."""
    wrong = [
        found.example.line()
        for found in (*train, *heldout)
        for _, value in found.example.slots
        for part in ((value,) if isinstance(value, str) else value)
        if not are_said(part, readings(found.example.text.lower()))
    ]
    assert not wrong, "\n".join(wrong[:20])


def test_a_value_nobody_said_has_its_words(train: list[Traced], truckmate: Tokenizer) -> None:
    """Evidence that is too wide allows invented values, one that misses a word forbids right ones."""
    labels = LabelSet.from_examples([found.example for found in train], truckmate)
    assert labels.evidence["st. louis"] == ["gateway", "louis"]
    assert labels.evidence["load cancelled"] == ["canceled", "cancelled"]
    assert labels.evidence["avoid tolls"] == ["tolls"]
    assert set(labels.evidence["i-0"]) == {"i", "inter", "interstate"}
    assert {"amount", "load_id", "when", "near_interstate", "via"} <= set(labels.spoken)
    assert labels.evidence["0:0 am"] == ["am", "m"], "glued and apart, with one digit and with two"
    assert labels.bare == []
