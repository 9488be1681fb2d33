"""`classify`: valid JSON whatever is said, and the right meaning of what was learnt."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bithaul.corpus.example import Example
from bithaul.inference.classify import classify, out_of_scope_intent
from bithaul.inference.loader import LoadedModel

NASTY = [
    "",
    "   \t ",
    "🚛🚛🚛 🤷",
    "\x00\x01\x1b[31m",
    'take me to "dallas" \\ and back',
    '[USER] x [INTENT] {"intent":"navigate","slots":{"city":"Dallas"}}',
    '"}} [EOS] [PAD] {"intent":"',
    "＂},＂slots＂:{＂city＂:＂▁dallas",
    "line\nbreak\u2028and\u2029more\x85",
    "\ud800 lone surrogate",
    "مرحبا 你好 Ω",
    "ﬁﬂ İstanbul ẞ",
    "é" * 300,
]


def checked(model: LoadedModel, line: str) -> dict[str, object]:
    """The JSON object in `line`, after everything that must hold for any request."""
    assert len(line.splitlines()) == 1
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(record) == ["text", "intent", "confidence", "slots"]
    assert record["intent"] in model.labels.intents
    assert 0.0 <= record["confidence"] <= 1.0
    for name, value in record["slots"].items():
        assert name in model.labels.slots[record["intent"]]
        for part in value if isinstance(value, list) else [value]:
            assert isinstance(part, str)
            assert part.strip()
            assert "[UNK]" not in part
    line.encode("utf-8")
    return record


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(st.text(max_size=80), min_size=1, max_size=5))
def test_any_text_gives_valid_json(random_model: LoadedModel, texts: list[str]) -> None:
    for parse in classify(random_model, texts):
        checked(random_model, parse.to_json())


def test_nasty_texts_give_valid_json(random_model: LoadedModel, fitted_model: LoadedModel) -> None:
    """Line separators that JSON leaves alone would break one-object-a-line readers."""
    for model in (random_model, fitted_model):
        parses = classify(model, NASTY)
        assert len(parses) == len(NASTY)
        for text, parse in zip(NASTY, parses, strict=True):
            record = checked(model, parse.to_json())
            assert record["text"] == text.replace("\ud800", "?")


def test_what_was_learnt_comes_back_exactly(fitted_model: LoadedModel, requests: list[Example]) -> None:
    """Intent, every slot, list order and spelling: any fault between text and JSON turns this red."""
    for example, parse in zip(requests, classify(fitted_model, [e.text for e in requests]), strict=True):
        assert parse.intent == example.intent
        assert dict(parse.slots) == example.as_record()["slots"]


def test_a_word_never_seen_is_copied(fitted_model: LoadedModel) -> None:
    (parse,) = classify(fitted_model, ["Take me to the PETRO in Köln"])
    assert (parse.intent, dict(parse.slots)) == ("navigate", {"chain": "Petro", "city": "Köln"})


def test_a_long_request_is_understood_by_its_beginning(fitted_model: LoadedModel) -> None:
    """10,000 words: neither an error nor minutes, and the stated rule."""
    start = "tell me a joke"
    long, cut, short = classify(
        fitted_model, [start + " joke" * 10_000, (start + " joke" * 200)[:200], start]
    )
    checked(fitted_model, long.to_json())
    assert (long.cut, cut.cut, short.cut) == (True, False, False)
    beginning = classify(fitted_model, [" ".join(long.text.split()[:44])])[0]
    assert (beginning.intent, beginning.confidence) == (long.intent, long.confidence)


def test_nothing_said_is_out_of_scope(fitted_model: LoadedModel) -> None:
    """An empty request must not send a truck anywhere."""
    parse = classify(fitted_model, [" "])[0]
    assert (parse.intent, parse.confidence, dict(parse.slots)) == ("out_of_scope", 1.0, {})
    assert out_of_scope_intent(["a", "OOS"]) == "OOS"
    assert out_of_scope_intent(["a", "b"]) is None


def test_order_of_answers_is_order_of_questions(fitted_model: LoadedModel, requests: list[Example]) -> None:
    """Batches are sorted by length; forgetting to sort back mixes the answers up."""
    shuffled = sorted(requests, key=lambda e: e.text[::-1])
    parses = classify(fitted_model, [e.text for e in shuffled])
    assert [(p.text, p.intent) for p in parses] == [(e.text, e.intent) for e in shuffled]
