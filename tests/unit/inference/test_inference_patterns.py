"""Values nobody said: only with a word that says them, only with the request's numbers, never punctuation."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from bithaul.corpus.example import Example, TextLine
from bithaul.corpus.labels import LabelSet, said_places
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.inference.grammar import LabelGrammar, LabelState
from bithaul.inference.patterns import Numbers, PatternTree, PatternWalk

WORDS = "two hundred forty dollars for nine tolls at the okc st louis st cloud , . ! - $ : i 40"
WORDS += " 6 pm loads six thirty"
VALUES = "oklahoma city st. louis i-40 6:30 pm 240 18.75"


@pytest.fixture(scope="module")
def reader() -> Tokenizer:
    examples = [Example(WORDS, "pay", (("amount", VALUES), ("place", WORDS)))]
    digits = TextLine("0 1 2 3 4 5 6 7 8 9 x0123456789")
    return Tokenizer.train([*examples * 3, digits, digits])


def labels(**changes: object) -> LabelSet:
    slots = {"pay": ["amount", "place"]}
    found = LabelSet(intents=["pay"], slots=slots, canonical={}, patterns={"amount": [], "place": []})
    return found.model_copy(update=changes)


def values(tokenizer: Tokenizer, known: LabelSet, text: str, slot: str, *, walks: int = 400) -> set[str]:
    """Every value of a slot that random walks through the grammar come to."""
    grammar = LabelGrammar.of(tokenizer, known)
    return {
        tokenizer.decode(value).strip()
        for state in _walks(grammar, tuple(i for i, _ in tokenizer.encode_words(text)), walks)
        for found in state.slots()
        for value in found.values
        if found.name == slot
    }


def _walks(grammar: LabelGrammar, request: tuple[int, ...], walks: int) -> Iterator[LabelState]:
    for seed in range(walks):
        walker = random.Random(seed)
        state = LabelState(grammar, "pay", budget=24, request=request)
        while not state.done:
            choices = state.choices()
            allowed = set(choices.fixed)
            if choices.words:
                words = grammar.words if choices.bare else grammar.words - grammar.bare
                allowed.add(walker.choice(sorted(words - {grammar.unknown})))
            state.advance(walker.choice(sorted(allowed)))
        if state.budget > 2:  # a label that its budget cut off may end anywhere
            yield state


def unsaid(found: set[str], text: str) -> set[str]:
    words = re.compile(r"\d|[a-z]+|[^\w\s]")
    return {value for value in found if not said_places(words.findall(value), words.findall(text))}


def test_a_number_in_words_is_that_number(reader: Tokenizer) -> None:
    """Without the numbers of the request "two hundred forty" could be 244."""
    text = "two hundred forty dollars for nine tolls"
    known = labels(patterns={"amount": ["0", "00", "000"], "place": []})
    free = unsaid(values(reader, known, text, "amount"), text)
    assert {value for value in free if value not in ("240", "40", "9", "09")}
    held = unsaid(values(reader, known.model_copy(update={"spoken": ["amount"]}), text, "amount"), text)
    assert held <= {"240", "40", "9", "09"}
    assert "240" in held


def test_each_number_of_a_value_is_one_of_the_request(reader: Tokenizer) -> None:
    text = "at six thirty pm"
    known = labels(patterns={"amount": ["0:00 pm"], "place": []}, spoken=["amount"])
    assert unsaid(values(reader, known, text, "amount"), text) == {"6:30 pm"}
    assert unsaid(values(reader, known, "at the loads", "amount"), "at the loads") == set()


def test_no_way_into_a_value_that_can_not_end(reader: Tokenizer) -> None:
    """ "i" is said and no number: "i-" must not be begun, because nothing could finish it."""
    known = labels(patterns={"amount": ["i-00"], "place": []}, spoken=["amount"], evidence={"i-0": ["i"]})
    assert (
        unsaid(values(reader, known, "i hundred for the loads", "amount"), "i hundred for the loads") == set()
    )
    assert "i-40" in values(reader, known, "i forty", "amount")


def test_an_unsaid_value_needs_a_word_that_says_it(reader: Tokenizer) -> None:
    """Without evidence "st cloud" could end as "St. Louis", and a city could come from nowhere."""
    known = labels(patterns={"amount": [], "place": ["oklahoma city", "st. louis"]})
    text = "dollars for st cloud"
    assert unsaid(values(reader, known, text, "place"), text) == {"oklahoma city", "st. louis"}
    told = known.model_copy(update={"evidence": {"oklahoma city": ["okc"], "st. louis": ["louis"]}})
    assert unsaid(values(reader, told, text, "place"), text) == set()
    assert "oklahoma city" in values(reader, told, "tolls at okc", "place")
    assert "st. louis" in values(reader, told, "st louis", "place")
    some = known.model_copy(update={"evidence": {"oklahoma city": ["okc"]}})
    assert unsaid(values(reader, some, text, "place"), text) == {"st. louis"}


def test_evidence_counts_behind_a_mark_too(reader: Tokenizer) -> None:
    known = labels(patterns={"amount": ["0 pm"], "place": []}, spoken=["amount"], evidence={"0 pm": ["pm"]})
    assert "6 pm" in values(reader, known, "at 6pm", "amount")
    assert "6 pm" not in values(reader, known, "at 6", "amount")


@pytest.mark.parametrize("restricted", [True, False])
def test_no_value_is_punctuation_alone(reader: Tokenizer, restricted: bool) -> None:
    """A destination "," is no answer, wherever it comes from."""
    known = labels() if restricted else labels(patterns={})
    found = values(reader, known, "st cloud , . $ - tolls", "place")
    assert len(found) > 5
    assert all(any(map(str.isalnum, value)) for value in found), found


@pytest.mark.parametrize("restricted", [True, False])
def test_a_slot_of_marks_keeps_its_marks(reader: Tokenizer, restricted: bool) -> None:
    """Somebody else's data may have a slot for the currency sign."""
    known = labels(bare=["place"]) if restricted else labels(bare=["place"], patterns={})
    assert values(reader, known, "st cloud $ 40", "place", walks=3000) & {"$"}


def test_a_said_number_is_a_whole_number(reader: Tokenizer) -> None:
    """Pieces are single digits, so a value could stop inside "4821" or in front of the cents."""
    found = values(reader, labels(), "loads 4821 for 18.75 dollars", "amount", walks=2000)
    assert {value for value in found if value.startswith("4")} >= {"4821"}
    for value in found:
        assert value.split()[-1] not in ("4", "48", "482", "18", "18.", "18.7"), value


def test_a_checked_number_has_any_length(reader: Tokenizer) -> None:
    """Without it an id of six digits would have to wait until training has one of six."""
    known = labels(patterns={"amount": ["0", "00", "000"], "place": []}, spoken=["amount"])
    text = "two hundred forty six thirty tolls"
    assert "24630" not in unsaid(values(reader, known, text, "amount", walks=3000), text)
    many = known.model_copy(update={"patterns": {"amount": ["0", "00", "000", "0000"], "place": []}})
    assert "24630" in unsaid(values(reader, many, text, "amount", walks=3000), text)


def test_cents_have_two_digits(reader: Tokenizer) -> None:
    """Wrong result: 40.6 for "forty dollars six", because amounts in dollars have any length."""
    text = "forty dollars six"
    for few in ([], ["0", "00", "000", "0000"]):
        patterns = {"amount": ["00.00", *few], "place": []}
        found = unsaid(values(reader, labels(patterns=patterns, spoken=["amount"]), text, "amount"), text)
        assert "40.06" in found
        assert "40.6" not in found


def test_a_value_does_not_end_inside_a_number(reader: Tokenizer) -> None:
    """Wrong result: the load 26 of "two six nine", because two of its words mean a number too."""
    text = "two six nine"
    known = labels(patterns={"amount": ["0", "00", "000", "0:00 pm"], "place": []}, spoken=["amount"])
    free = unsaid(values(reader, known, text, "amount", walks=3000), text)
    assert free >= {"2", "26", "69", "269", "2:69 pm", "6:09 pm"}
    held = known.model_copy(update={"whole": ["amount"]})
    assert unsaid(values(reader, held, text, "amount", walks=3000), text) == {"269"} | {
        value for value in free if value.endswith("pm")
    }


def test_a_number_may_end_in_front_of_a_call(reader: Tokenizer) -> None:
    """Wrong result: "load two nine ten four" is load 29104 for sure, whatever the model knows."""
    text = "two nine forty six"
    known = labels(patterns={"amount": ["0", "00", "000", "0000"], "place": []}, spoken=["amount"])
    held = known.model_copy(update={"whole": ["amount"]})
    assert unsaid(values(reader, held, text, "amount", walks=3000), text) == {"2946"}
    called = held.model_copy(update={"calls": ["forty six"]})
    assert unsaid(values(reader, called, text, "amount", walks=3000), text) == {"2946", "29"}
    assert unsaid(values(reader, called, "two six nine", "amount", walks=3000), "two six nine") == {"269"}


def test_a_pattern_may_follow_what_is_said(reader: Tokenizer) -> None:
    """ "loads at" is said, "6:30 pm" is not: training need not have every day with every form of a time."""
    text = "loads at six thirty pm"
    known = labels(patterns={"amount": ["0:00 pm", "tolls at 0:00 pm"], "place": []}, spoken=["amount"])
    known = known.model_copy(update={"evidence": {"tolls at 0:0 pm": ["tolls"]}})
    found = unsaid(values(reader, known, text, "amount", walks=3000), text)
    assert found == {"6:30 pm", "loads at 6:30 pm"}
    apart = labels(patterns={"amount": ["0:00 pm"], "place": []}, spoken=["amount"])
    assert unsaid(values(reader, apart, text, "amount", walks=3000), text) == {"6:30 pm"}


def test_a_walk_knows_its_choices(reader: Tokenizer) -> None:
    tree = PatternTree.of(["000"], reader)
    said = frozenset(i for i, _ in reader.encode_words("two hundred forty"))
    spellings = [reader.token(i) for i in range(reader.vocab_size)]
    walk = PatternWalk(tree, said, Numbers("two hundred forty"), spellings)
    path = [i for i, _ in reader.encode_words("240")]
    for token in path:
        assert list(walk.choices) == [token]
        assert not walk.ends
        walk = walk.choices[token]
    assert walk.ends
    assert not walk.choices


def test_what_training_values_have_in_common() -> None:
    """Learnt from the data: numbers that are not the request's make a slot free, marks are remembered."""
    said = [
        Example(f"pay {word} at c", "pay", (("amount", n),)) for word, n in (("two", "2"), ("nine", "9"))
    ] * 30
    dated = [Example("pay today", "pay", (("day", "2024"),))] * 30
    signs = [Example("pay in $", "pay", (("sign", "$"),))]
    where = [Example(f"pay at {city}", "pay", (("place", "oklahoma city"),)) for city in ("okc", "o c")] * 15
    tokenizer = Tokenizer.train([*said, *dated, *signs, *where])
    found = LabelSet.from_examples([*said, *dated, *signs, *where], tokenizer)
    assert found.spoken == ["amount"]
    assert found.bare == ["sign"]
    assert found.evidence["oklahoma city"] == ["o", "okc"]
