"""What the label file knows of values: which slots are said, which forms the unsaid ones have."""

from __future__ import annotations

import pytest

from bithaul.corpus.example import Example
from bithaul.corpus.labels import LARGEST_GAP, LabelSet, is_said
from bithaul.corpus.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("value", "request_words", "said"),
    [
        ("cedar city", "rest area near cedar city now", True),
        ("cedar city", "near cedar um city", True),
        ("cedar city", "cedar " + "um " * LARGEST_GAP + "city", True),
        ("cedar city", "cedar " + "um " * (LARGEST_GAP + 1) + "city", False),
        ("cedar city", "city of cedar", False),
        ("cedar city", "cedar rapids", False),
        ("cedar", "", False),
    ],
)
def test_a_value_is_said_in_order_with_small_gaps(value: str, request_words: str, said: bool) -> None:
    assert is_said(value.split(), request_words.split()) is said


def test_forms_of_unsaid_values_are_kept_and_open_slots_stay_open() -> None:
    """Catches: a spoken number that can no longer be written, a free slot held to what training said."""
    examples = [
        Example(
            f"load {word} to {city} because {word} {city}",
            "load",
            (("id", digits), ("city", city), ("note", note)),
        )
        for (word, digits), city, note in zip(
            [("forty two", "42"), ("fifty one", "51"), ("seven", "7"), ("nine", "9")] * 50,
            ["Waco", "Enid"] * 100,
            [chr(97 + i // 26) + chr(97 + i % 26) for i in range(200)],
            strict=True,
        )
    ]
    labels = LabelSet.from_examples(examples, Tokenizer.train(examples))
    assert labels.patterns == {"city": [], "id": ["0", "00"]}
