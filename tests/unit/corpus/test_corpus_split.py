"""The held-out split is apart by construction, and still sayable with the words training teaches."""

from __future__ import annotations

from collections import Counter

import pytest

from bithaul.corpus.example import Example
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.corpus.truckmate import lexicon as lex
from bithaul.corpus.truckmate.dice import Dice
from bithaul.corpus.truckmate.frames import WEIGHTS, frames
from bithaul.corpus.truckmate.generator import Traced, _runs_together
from bithaul.corpus.truckmate.grammar import Part, as_part, phrasings
from bithaul.corpus.truckmate.values import KINDS, OPEN_KINDS, Spoken, is_city

OFTEN = 5  # a word seen less often in 50,000 lines is not learned


def values_of(example: Example) -> list[str]:
    return [v for _, value in example.slots for v in ((value,) if isinstance(value, str) else value)]


def test_each_heldout_example_has_what_training_never_has(train: list[Traced], heldout: list[Traced]) -> None:
    """Catches a frame, value or pair that leaks into training."""
    frames_seen = {found.frame for found in train}
    values_seen = {value for found in train for value in found.values}
    pairs_seen = {pair for found in train for pair in found.pairs}
    for found in heldout:
        new = {
            "frame": found.frame not in frames_seen,
            "value": any(value not in values_seen for value in found.values),
            "pair": any(pair not in pairs_seen for pair in found.pairs),
        }
        assert new[found.reason], f"held out for its {found.reason}, but training has it: {found}"


def test_no_heldout_phrasing_can_come_from_a_training_frame() -> None:
    """All phrasings of all frames, before noise: catches two frames that say the same thing."""
    trained = {text for frame in frames() if not frame.held for text in phrasings(frame.phrase)}
    held = {text for frame in frames() if frame.held for text in phrasings(frame.phrase)}
    assert not trained & held, sorted(trained & held)[:20]
    assert len(trained) > 5_000


def test_no_heldout_text_is_a_training_text(train: list[Traced], heldout: list[Traced]) -> None:
    texts = {found.example.text for found in train}
    assert not [found.example.text for found in heldout if found.example.text in texts]


def test_all_three_reasons_and_all_intents_are_measured(heldout: list[Traced]) -> None:
    """Catches a split that is nearly all of one easy kind."""
    reasons = Counter(found.reason for found in heldout)
    assert min(reasons["frame"], reasons["value"], reasons["pair"]) > len(heldout) // 8, reasons
    intents = Counter(found.example.intent for found in heldout)
    assert set(intents) == set(WEIGHTS)
    assert min(intents.values()) > len(heldout) // 100, intents


def test_no_heldout_name_is_a_value_of_training(train: list[Traced]) -> None:
    """Values, not only slot and value together: a held-out city is in no slot and behind no alias."""
    said = {value for found in train for value in values_of(found.example)}
    held = {term.value for term in (*lex.CITIES_HELDOUT, *lex.WEATHER_HELDOUT)}
    held |= {f"I-{number}" for number in lex.INTERSTATES_HELDOUT} | {f"US-{n}" for n in lex.US_ROUTES_HELDOUT}
    assert not said & held


def test_lists_are_as_frequent_in_training_as_held_out(train: list[Traced], heldout: list[Traced]) -> None:
    """Catches: phrasings of many values, which have many pairs, drawn for the held-out set only."""

    def share(found: list[Traced]) -> float:
        return sum(sum(key.startswith("stops=") for key in t.values) > 1 for t in found) / len(found)

    assert share(train) > 0.015
    assert share(heldout) < 1.5 * share(train)


@pytest.mark.parametrize(
    ("words", "city"),
    [
        ("austin", True),
        ("bay bend", True),
        ("fort madison", True),
        ("bend bay", False),
        ("madison fort", False),
    ],
)
def test_what_could_be_a_city(words: str, city: bool) -> None:
    assert is_city(tuple(words.split())) is city


@pytest.mark.parametrize(
    ("first", "second", "others"),
    [
        ("austin", "bay bend", True),
        ("lincoln", "junction park", True),
        ("denver", "fort madison", False),
        ("fort madison", "denver", False),
    ],
)
def test_two_cities_that_can_be_heard_as_others(first: str, second: str, others: bool) -> None:
    """Catches a label that nobody could tell from its words."""
    parts = [as_part("stops", "city", Spoken(name, name)) for name in (first, second)]
    assert _runs_together(parts) is others
    assert not _runs_together([parts[0], Part(("and",)), parts[1]])


@pytest.mark.parametrize(
    ("road", "when", "others"),
    [
        (("inter state thirty", "I-30"), ("two hours from now", "2 hours from now"), True),
        (("interstate 30", "I-30"), ("2 hours from now", "2 hours from now"), False),
        (("interstate eighty five", "I-85"), ("ten minutes from now", "10 minutes from now"), False),
    ],
)
def test_two_numbers_that_can_be_heard_as_one(
    road: tuple[str, str], when: tuple[str, str], others: bool
) -> None:
    """Catches a label that no decoder can say: "thirty two" is one number."""
    parts = [
        as_part(name, name, Spoken(*said, numeric=True)) for name, said in (("via", road), ("when", when))
    ]
    assert _runs_together(parts) is others
    assert not _runs_together([parts[0], Part(("in",)), parts[1]])


@pytest.mark.parametrize("kind", sorted(OPEN_KINDS))
def test_the_pools_of_a_kind_share_no_value(kind: str) -> None:
    dice = Dice("pools")
    pools = [{KINDS[kind](dice, held).value for _ in range(3_000)} for held in (False, True)]
    assert all(pools)
    assert not pools[0] & pools[1]


def test_heldout_words_are_known_and_trained(
    train: list[Traced], heldout: list[Traced], truckmate: Tokenizer
) -> None:
    """Catches held-out words a word-level model has never met: in the text, and inside a label."""
    text: Counter[int] = Counter()
    label: Counter[int] = Counter()
    for found in train:
        text.update(i for i, _ in truckmate.encode_words(found.example.text))
        for value in values_of(found.example):
            label.update(i for i, _ in truckmate.encode_words(value))
    for found in heldout:
        ids = truckmate.encode_example(found.example)
        assert truckmate.unk not in ids, found.example.line()
        for i, piece in truckmate.encode_words(found.example.text):
            assert text[i] >= OFTEN, f"{piece!r} occurs {text[i]} times: {found.example.text}"
        for value in values_of(found.example):
            for i, piece in truckmate.encode_words(value):
                assert label[i] >= OFTEN, f"{piece!r} of {value!r} is in {label[i]} training labels"


def test_every_intent_has_heldout_frames() -> None:
    for intent in WEIGHTS:
        own = [frame for frame in frames() if frame.intent == intent]
        assert sum(frame.held for frame in own) >= 4, intent
        assert sum(not frame.held for frame in own) >= 12, intent
    assert len({frame.text for frame in frames()}) == len(frames()), "a frame is written twice"
