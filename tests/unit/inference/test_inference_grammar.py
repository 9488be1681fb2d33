"""The label grammar alone: every path through it is a label, and it always ends within its budget."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bithaul.corpus.example import Example, TextLine
from bithaul.corpus.labels import LabelSet, said_places
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import CorruptFile
from bithaul.inference.grammar import LabelGrammar, LabelState
from bithaul.inference.loader import LoadedModel


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.integers(1, 60), longest=st.integers(1, 8))
def test_every_walk_is_json_within_its_budget(
    random_model: LoadedModel, seed: int, budget: int, longest: int
) -> None:
    """A missing closer, a second use of a name or a label longer than its budget would show."""
    walker, grammar, tokenizer = random.Random(seed), random_model.grammar, random_model.tokenizer
    marks, words = grammar.structure, sorted(grammar.words)
    intent = walker.choice(grammar.intents)
    state = LabelState(grammar, intent, budget=budget, request=(grammar.unknown,), max_value_tokens=longest)
    tokens = [marks.open_intent, marks.intents[intent]]
    if state.done:
        tokens.append(marks.close_no_slots)
    while not state.done:
        choices = state.choices()
        word = walker.choice(words)
        if word == grammar.unknown and not choices.unknown:
            word = words[0] if words[0] != grammar.unknown else words[1]
        options = [*choices.fixed, *([word] if choices.words else [])]
        tokens.append(walker.choice(options))
        state.advance(tokens[-1])
    assert len(tokens) <= 2 + budget
    # Quotes and backslashes are words too; they are escaped when the label is written, not here.
    if not {'"', "\\"} & set("".join(map(tokenizer.token, (t for t in tokens if t in grammar.words)))):
        label = json.loads(tokenizer.decode(tokens), object_pairs_hook=_no_duplicates)
        assert label["intent"] == intent
        assert list(label.get("slots", {})) == [slot.name for slot in state.slots()]


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_an_intent_without_slots_is_done_at_once(random_model: LoadedModel) -> None:
    """Reading on would spend a network call, and could open a slot that this intent does not have."""
    assert LabelState(random_model.grammar, "hos_status", budget=50, request=()).done
    word = max(random_model.grammar.words - random_model.grammar.inside)
    assert not LabelState(random_model.grammar, "navigate", budget=50, request=(word,)).done


def test_words_are_words(random_model: LoadedModel) -> None:
    """A structural token inside a value would break the JSON."""
    grammar, tokenizer = random_model.grammar, random_model.tokenizer
    special = {tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.user, tokenizer.intent}
    assert not grammar.words & (grammar.structure.ids() | special)
    assert len(grammar.words) + len(grammar.structure.ids() | special) == tokenizer.vocab_size


def test_labels_of_another_tokenizer_are_refused(tokenizer: Tokenizer) -> None:
    """A KeyError would not tell what to do."""
    labels = LabelSet(intents=["make_coffee"], slots={"make_coffee": []}, canonical={})
    with pytest.raises(CorruptFile, match="make_coffee"):
        LabelGrammar.of(tokenizer, labels)


def restricted(model: LoadedModel, **patterns: list[str]) -> LabelSet:
    """The model's labels with these slots held to the request's words and the given patterns."""
    return model.labels.model_copy(update={"patterns": patterns})


def walks(grammar: LabelGrammar, request: tuple[int, ...]) -> Iterator[LabelState]:
    """Finished labels from random walks through what the grammar allows."""
    for seed in range(300):
        walker = random.Random(seed)
        state = LabelState(grammar, "load", budget=30, request=request)
        while not state.done:
            choices = state.choices()
            assert not choices.words, "a restricted slot may not use any word"
            state.advance(walker.choice(choices.fixed))
        yield state


def test_a_said_value_is_words_of_the_request_in_order(
    tokenizer: Tokenizer, random_model: LoadedModel
) -> None:
    """Without the restriction the walk would mix words, jump over many, or take "2" out of "42"."""
    grammar = LabelGrammar.of(tokenizer, restricted(random_model, load_id=[], reason=[]))
    request = tuple(i for i, _ in tokenizer.encode_words("load number 42 is late"))
    inside = request[3]
    assert tokenizer.token(inside) == "2"
    for state in walks(grammar, request):
        for slot in state.slots():
            for value in slot.values:
                assert said_places([str(i) for i in value], [str(i) for i in request])
                assert value[0] != inside


@settings(max_examples=150, deadline=None)
@given(
    request_words=st.lists(st.sampled_from(["load", "number", "42", "is", "late"]), max_size=9),
    gaps=st.sampled_from([None, [], ["is"]]),
    patterns=st.sampled_from(
        [{"load_id": [], "reason": []}, {"load_id": ["00"], "reason": []}, {"reason": []}]
    ),
    seed=st.integers(0, 10**6),
)
def test_said_values_keep_the_order_of_the_request(
    tokenizer: Tokenizer,
    random_model: LoadedModel,
    request_words: list[str],
    gaps: list[str] | None,
    patterns: dict[str, list[str]],
    seed: int,
) -> None:
    """Wrong result: the same words are two stops, a later value goes back, a decoder without a choice."""
    labels = random_model.labels.model_copy(update={"patterns": patterns, "in_order": True, "gaps": gaps})
    grammar, walker = LabelGrammar.of(tokenizer, labels), random.Random(seed)
    request = tuple(i for i, _ in tokenizer.encode_words(" ".join(request_words)))
    state = LabelState(grammar, "load", budget=30, request=request)
    while not state.done:
        choices = state.choices()
        options = [*choices.fixed, *(sorted(grammar.words - {grammar.unknown})[:3] if choices.words else [])]
        assert options
        state.advance(walker.choice(options))
    behind = 0
    for slot in state.slots():
        if slot.name not in patterns:
            continue
        for value in slot.values:
            places = said_places([str(i) for i in value], [str(i) for i in request])
            unsaid = bool(patterns[slot.name]) and all(
                grammar.spellings[i].strip("▁").isdigit() for i in value
            )
            if not unsaid:
                behind = min(found[-1] for found in places if found[0] >= behind) + 1


def test_without_a_known_order_words_may_be_said_twice(
    tokenizer: Tokenizer, random_model: LoadedModel
) -> None:
    """The test above could not fail if no walk ever did so; data whose slots are sorted needs it."""
    request = tuple(i for i, _ in tokenizer.encode_words("load is late"))
    found = {}
    for in_order in (False, True):
        labels = restricted(random_model, load_id=[], reason=[]).model_copy(update={"in_order": in_order})
        labelled = [
            [value for slot in state.slots() for value in slot.values]
            for state in walks(LabelGrammar.of(tokenizer, labels), request)
        ]
        found[in_order] = sum(len(values) > len(set(values)) for values in labelled)
    assert found[False] > 20
    assert found[True] == 0


def test_a_value_goes_on_only_behind_words_that_people_put_inside(
    tokenizer: Tokenizer, random_model: LoadedModel
) -> None:
    """Wrong result: "new norman city" of "new norman antonio city"."""
    request = tuple(i for i, _ in tokenizer.encode_words("load number is late"))
    load, number, _, late = request
    for gaps, wanted in ((None, {(load, late), (number, late)}), (["is"], {(number, late)}), ([], set())):
        labels = restricted(random_model, load_id=[], reason=[]).model_copy(update={"gaps": gaps})
        values = {
            value
            for state in walks(LabelGrammar.of(tokenizer, labels), request)
            for slot in state.slots()
            for value in slot.values
        }
        assert values & {(load, late), (number, late)} == wanted


def test_a_said_value_never_ends_inside_a_word(requests: list[Example], random_model: LoadedModel) -> None:
    """Without the rule "fueling" could become the value "fuel"."""
    labels = restricted(random_model, load_id=[], reason=[])
    examples = [*requests, TextLine("fuel fuel stop stop running fueling")]
    tokenizer = Tokenizer.train(examples, word_pieces=80)
    grammar = LabelGrammar.of(tokenizer, labels)
    request = tuple(i for i, _ in tokenizer.encode_words("load fueling is late"))
    assert [tokenizer.token(i) for i in request[1:3]] == ["▁fuel", "ing"]
    values = [v for state in walks(grammar, request) for slot in state.slots() for v in slot.values]
    assert len(values) > 100
    assert any(request[2] in value for value in values)
    for value in values:
        after = dict(itertools.pairwise(value))
        assert request[1] not in value or after.get(request[1]) == request[2]


def test_a_said_value_never_begins_with_a_comma(requests: list[Example], random_model: LoadedModel) -> None:
    labels = restricted(random_model, load_id=[], reason=[])
    tokenizer = Tokenizer.train([*requests, *[TextLine("a , b ! c ?")] * 2])
    grammar = LabelGrammar.of(tokenizer, labels)
    request = tuple(i for i, _ in tokenizer.encode_words("load , number !"))
    spelled = [tokenizer.token(i) for i in request]
    assert spelled == ["▁load", "▁,", "▁number", "▁!"]
    values = [v for state in walks(grammar, request) for slot in state.slots() for v in slot.values]
    assert {value[0] for value in values} == {request[0], request[2]}
    assert any(request[1] in value for value in values), "inside a value it may stand"


def test_a_pattern_allows_other_digits_but_no_other_words(
    tokenizer: Tokenizer, random_model: LoadedModel
) -> None:
    """A number that was spoken in words is not in the request; its form is known from training."""
    grammar = LabelGrammar.of(tokenizer, restricted(random_model, load_id=["00"], reason=[]))
    request = tuple(i for i, _ in tokenizer.encode_words("load is late"))
    seen = set()
    for state in walks(grammar, request):
        for slot in state.slots():
            for value in slot.values:
                if slot.name == "load_id" and not set(value) <= set(request):
                    text = "".join(tokenizer.token(i).strip("▁") for i in value)
                    assert len(text) == 2
                    assert text.isdigit()
                    seen.add(text)
    assert len(seen) > 10


def test_nothing_to_copy_means_no_copied_slot(tokenizer: Tokenizer, random_model: LoadedModel) -> None:
    """A slot without any possible value would leave the decoder without a choice."""
    grammar = LabelGrammar.of(tokenizer, restricted(random_model, load_id=[], reason=[]))
    assert LabelState(grammar, "load", budget=30, request=()).done
