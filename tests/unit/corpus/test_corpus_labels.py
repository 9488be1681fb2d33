"""What the label file knows of values: which slots are said, which forms the unsaid ones have."""

from __future__ import annotations

import pytest

from bithaul.corpus.example import Example
from bithaul.corpus.labels import LARGEST_GAP, LabelSet, said_places
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
    assert bool(said_places(value.split(), request_words.split())) is said


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


def ordered(examples: list[Example]) -> tuple[bool, list[str] | None]:
    labels = LabelSet.from_examples(examples, Tokenizer.train(examples))
    return labels.in_order, labels.gaps


def test_the_order_of_said_values_is_learnt() -> None:
    """Wrong result: data with slots by name loses values, or one wrong label frees all the others."""
    slots = (("from", "waco"), ("stops", ("enid", "alba")), ("to", "reno"))
    right = Example("drive from waco by enid and alba to reno", "trip", slots)
    between = Example("drive by enid to reno and alba", "trip", (("stops", ("enid", "alba")), ("to", "reno")))
    by_name = Example("drive to waco from enid", "trip", (("from", "enid"), ("to", "waco")))
    twice = Example("drive by enid to reno", "trip", (("stops", ("enid", "enid")), ("to", "reno")))
    unsaid = Example("drive from to reno", "trip", (("from", "waco"), ("to", "reno")))
    assert ordered([right] * 20)[0]
    assert ordered([right, unsaid] * 20)[0]
    assert ordered([right] * 99 + [by_name])[0]
    assert not ordered([right] * 97 + [between] * 3)[0]
    assert not ordered([right] * 97 + [by_name, twice])[0]
    assert not ordered([right, by_name] * 20)[0]
    assert not ordered([right] * 19)[0], "too few to know"


def test_words_inside_values_are_learnt() -> None:
    """Wrong result: any word may stand inside a value, or none where everybody says another one."""
    um = [
        Example(f"drive to cedar {word} city", "trip", (("to", "cedar city"),)) for word in ("um", "uh like")
    ]
    said = Example("drive to waco", "trip", (("to", "waco"),))
    assert ordered([*um, *um, said] * 20)[1] == ["like", "uh", "um"]
    assert ordered([said] * 20)[1] == []
    assert ordered([said] * 19)[1] is None
    many = [Example(f"to cedar {chr(97 + i)}x city", "trip", (("to", "cedar city"),)) for i in range(20)]
    assert ordered([*many, *[said] * 20])[1] is None


def test_a_stammer_is_looked_through_in_no_time() -> None:
    """Wrong result: a label of one word, thirty times, has more ways to stand in its request than atoms."""
    places = said_places(["no"] * 30, ["no"] * 90)
    assert 0 < len(places) < 90 * 90
    assert all(len(found) == 30 for found in places)


def test_whole_numbers_are_learnt() -> None:
    """Wrong result: a slot with the first two digits of an id may never have them again, or all ids may."""
    whole = Example("load four eight", "load", (("id", "48"),))
    cut = Example("load four eight two", "load", (("id", "48"),))

    def learnt(examples: list[Example]) -> list[str]:
        return LabelSet.from_examples(examples, Tokenizer.train(examples)).whole

    assert learnt([whole] * 20) == ["id"]
    assert learnt([whole] * 19) == []
    assert learnt([whole] * 99 + [cut]) == ["id"]
    assert learnt([whole] * 97 + [cut, cut]) == []


def test_number_words_that_are_no_part_of_a_number_are_learnt() -> None:
    """Wrong result: "interstate 27 ten four" has no interstate, or any number may be cut behind two words."""
    plain = Example("load four eight", "load", (("id", "48"),))
    behind = Example("load four eight ten four", "load", (("id", "48"),))
    before = Example("breaker one nine four eight", "load", (("id", "48"),))
    cut = Example("load four eight two", "load", (("id", "48"),))
    cents = Example("lunch thirty six fifteen", "load", (("id", "36.15"),))

    def learnt(examples: list[Example]) -> list[str]:
        return LabelSet.from_examples(examples, Tokenizer.train(examples)).calls

    assert learnt([plain] * 20) == []
    assert learnt([plain] * 20 + [behind] * 4) == []
    assert learnt([plain] * 20 + [behind] * 5) == ["ten four"]
    assert learnt([*[plain] * 20, *[behind] * 5, *[before] * 5]) == ["one nine", "ten four"]
    assert learnt([plain] * 20 + [cut] * 5) == [], "one word may be the rest of any number"
    assert learnt([plain] * 20 + [cents] * 5) == [], "dollars are part of the amount"
    called = [*[plain] * 20, *[behind] * 5]
    assert LabelSet.from_examples(called, Tokenizer.train(called)).whole == ["id"], "a call is no cut"
