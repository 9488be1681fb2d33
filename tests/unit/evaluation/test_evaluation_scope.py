"""Scores for out of scope on readings made by hand, and readings against the network itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bithaul.corpus.example import Example
from bithaul.errors import InvalidInput, UnknownName
from bithaul.evaluation.scope import SCORES, Readings, rank_scope, score_named
from bithaul.inference.classify import classify
from bithaul.inference.loader import LoadedModel
from bithaul.inference.reading import Reading

INTENTS = ("go", "find", "oos")


def readings(*rows: tuple[tuple[float, ...], float], intents: tuple[str, ...] = INTENTS) -> Readings:
    """Rows of probabilities and nats of text."""
    return Readings.of(
        [Reading(tuple(math.log(p) + 5 for p in shares), nats) for shares, nats in rows], intents
    )


def values(name: str, found: Readings) -> list[float]:
    return SCORES[name](found).tolist()


def test_doubt_and_the_models_own_word_both_count() -> None:
    """Renormalised over the intents in scope the second would be 0.1."""
    found = readings(((0.9, 0.05, 0.05), 1.0), ((0.45, 0.05, 0.5), 1.0), ((0.5, 0.4, 0.1), 1.0))
    assert values("max_probability", found) == pytest.approx([0.1, 0.55, 0.5])
    assert values("out_of_scope_probability", found) == pytest.approx([0.05, 0.5, 0.1])


def test_the_other_scores_by_hand() -> None:
    found = readings(((0.6, 0.2, 0.2), 3.0))
    inside = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert values("entropy", found) == pytest.approx([0.2 + inside])
    assert values("max_logit", found) == pytest.approx([-(math.log(0.6) + 5)])
    assert values("energy", found) == pytest.approx([-(math.log(0.8) + 5)])
    assert values("text", found) == [3.0]
    assert values("doubt_and_text", found) == pytest.approx([-math.log(0.6) + 0.3])


def test_sure_answers_still_differ() -> None:
    """1 - exp(x) would call 1e-18 and 2e-18 of doubt both 0, and rank by chance."""
    found = Readings.of([Reading((0.0, 41.0), 0.0), Reading((0.0, 40.0), 0.0)], ("go", "find"))
    first, second = values("max_probability", found)
    assert 0 < first < second


def test_a_model_without_such_an_intent_has_scores_too() -> None:
    found = readings(((0.7, 0.3), 1.0), ((0.5, 0.5), 2.0), intents=("go", "find"))
    assert values("max_probability", found) == pytest.approx([0.3, 0.5])
    assert values("out_of_scope_probability", found) == [0.0, 0.0]


def test_ranking_by_hand() -> None:
    """Doubts 0.1, 0.5 in scope, 0.55, 0.3 out of scope: 3 of 4 pairs."""
    found = readings(
        ((0.9, 0.05, 0.05), 1.0), ((0.5, 0.4, 0.1), 1.0), ((0.45, 0.05, 0.5), 4.0), ((0.7, 0.2, 0.1), 3.0)
    )
    report = rank_scope(found, np.array([False, False, True, True]), score="max_probability")
    assert report is not None
    assert (report.auroc, report.in_scope, report.out_of_scope) == (0.75, 2, 2)
    assert report.aupr == pytest.approx((1 + 2 / 3) / 2)
    assert report.fpr_at_95_tpr == 0.5
    assert report.candidates.keys() == SCORES.keys()
    assert report.candidates["text"] == 1.0
    chosen = rank_scope(found, np.array([False, False, True, True]), score="text")
    assert chosen is not None
    assert (chosen.score, chosen.auroc, chosen.fpr_at_95_tpr) == ("text", 1.0, 0.0)


def test_the_score_follows_the_models_intents() -> None:
    """0.05, 0.1 in scope; 0.5, 0.1 out of scope by the model's own intent."""
    found = readings(
        ((0.9, 0.05, 0.05), 1.0), ((0.5, 0.4, 0.1), 1.0), ((0.45, 0.05, 0.5), 4.0), ((0.7, 0.2, 0.1), 3.0)
    )
    outside = np.array([False, False, True, True])
    own = rank_scope(found, outside)
    assert own is not None
    assert (own.score, own.auroc) == ("out_of_scope_probability", 0.875)
    without = Readings(found.logits, np.array([True, True, True]), found.text_nats)
    other = rank_scope(without, outside)
    assert other is not None
    assert other.score == "max_probability"


def test_one_kind_alone_is_not_ranked() -> None:
    """An AUROC of 0.5 or 1 would be an invented figure."""
    found = readings(((0.9, 0.05, 0.05), 1.0), ((0.5, 0.4, 0.1), 1.0))
    assert rank_scope(found, np.array([True, True])) is None
    assert rank_scope(found, np.array([False, False])) is None


def test_wrong_names_and_no_requests() -> None:
    with pytest.raises(UnknownName, match="max_probability, "):
        score_named("best")
    with pytest.raises(InvalidInput, match="at least one"):
        Readings.of([], INTENTS)


def test_a_reading_is_what_the_network_says(random_model: LoadedModel, requests: list[Example]) -> None:
    """One request at a time, without cache, padding or batch: logits of the intents, nats of the text."""
    texts = [request.text for request in requests]
    network, tokenizer, grammar = random_model.network, random_model.tokenizer, random_model.grammar
    for text, parse in zip(texts, classify(random_model, texts, readings=True), strict=True):
        prompt = tokenizer.encode_prompt(text)
        ids = torch.tensor([[*prompt, grammar.structure.open_intent]])
        logs = torch.log_softmax(network.logits(network(ids))[0], dim=-1)
        logits = network.logits(network(ids))[0, -1, list(grammar.intent_ids)]
        assert parse.reading is not None
        assert parse.reading.logits == pytest.approx(logits.tolist(), abs=1e-3)
        wanted = [-float(logs[i - 1, prompt[i]]) for i in range(2, len(prompt))]
        assert parse.reading.text_nats == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)


def test_readings_change_no_answer(fitted_model: LoadedModel, requests: list[Example]) -> None:
    texts = [request.text for request in requests]
    plain, read = classify(fitted_model, texts), classify(fitted_model, texts, readings=True)
    assert plain == read
    assert all(parse.reading is None for parse in plain)
    for parse in read:
        assert parse.reading is not None
        shares = np.exp(np.array(parse.reading.logits) - max(parse.reading.logits))
        assert parse.confidence == pytest.approx(shares.max() / shares.sum(), abs=1e-5)
        assert fitted_model.labels.intents[int(shares.argmax())] == parse.intent
