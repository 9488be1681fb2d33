"""Perplexity: every token once, against a model whose answer is known, with the floor counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from bithaul.corpus.example import TextLine
from bithaul.corpus.labels import LabelSet
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import InvalidData, InvalidInput, NotFound
from bithaul.evaluation.documents import Framed, frame, read_documents
from bithaul.evaluation.perplexity import evaluate_perplexity
from bithaul.evaluation.predict import predict, windows
from bithaul.inference.loader import LoadedModel, network_of
from bithaul.model.checkpoint import Checkpoint
from bithaul.model.config import ModelConfig
from bithaul.model.init import initial_vector

LINES = ["The cat sat on the mat.", "a zebra sat on Ünal 's cat", "the mat"] * 9


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """Without "zebra" and "ünal"."""
    known = [TextLine(line.replace("zebra", "").replace("Ünal", "")) for line in LINES]
    return Tokenizer.train(known, min_frequency=2)


def model_of(tokenizer: Tokenizer, *, scale: float, context: int = 12) -> LoadedModel:
    """A model of plain text with random weights; of scale 0 it gives every token 1 / V."""
    config = ModelConfig(
        name="tiny",
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        context_length=context,
    )
    vector = initial_vector(config, seed=5) * np.float32(scale)
    network = network_of(Checkpoint(config, vector, {}), Path("here"))
    return LoadedModel(network, tokenizer, LabelSet(intents=[], slots={}, canonical={}))


def test_windows_score_every_token_once() -> None:
    for length in (1, 2, 3, 12, 13, 14, 100):
        for context, stride in ((12, 12), (12, 6), (12, 5), (12, 1), (3, 2)):
            scored: Counter[int] = Counter()
            for window in windows(length, context=context, stride=stride):
                assert 0 <= window.start < window.first < window.stop <= length
                assert window.stop - 1 - window.start <= context
                assert window.start == 0 or window.first - window.start >= context - stride
                scored.update(range(window.first, window.stop))
            assert scored == Counter(range(1, length))


@pytest.mark.parametrize("stride", [1, 5, 12])
def test_probabilities_are_the_networks(words: Tokenizer, stride: int) -> None:
    """Each token again by itself, after the context its window gives it. A shift by one would differ."""
    model = model_of(words, scale=20)
    text = frame(words, LINES, requests=False)
    row = text.rows[0]
    found = predict(model.network, text, stride=stride, floor=0.0).probabilities
    wanted = {}
    for window in windows(len(row), context=12, stride=stride):
        for at in range(window.first, window.stop):
            ids = torch.from_numpy(row[window.start : at])[None]
            shares = torch.softmax(model.network.logits(model.network(ids))[0, -1], dim=-1)
            wanted[at] = float(shares[row[at]])
    assert found == pytest.approx([wanted[at] for at in np.flatnonzero(text.counted[0])], rel=1e-3)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(words: Tokenizer) -> None:
    """Tokens, not windows or lines, are averaged over; [BOS] is not among them, line ends are."""
    text = frame(words, LINES, requests=False)
    report = evaluate_perplexity(model_of(words, scale=0), text)
    v = words.vocab_size
    encoded = words.encode_many([TextLine(line) for line in LINES])
    assert report.tokens == sum(len(row) - 1 for row in encoded)
    assert report.perplexity == pytest.approx(v, rel=1e-4)
    assert report.perplexity_known == pytest.approx(v, rel=1e-4)
    assert (report.vocabulary, report.floored_tokens, report.floor_mass) == (v, 0, 0.0)
    assert (report.context, report.stride, report.documents) == (12, 6, 27)
    size = sum(len(line.encode()) + 1 for line in LINES)
    assert report.bytes == size
    assert report.bits_per_byte == pytest.approx(report.tokens * math.log2(v) / size, rel=1e-4)
    assert report.words == 9 * (6 + 7 + 2)
    assert report.word_perplexity == pytest.approx(v ** (report.tokens / (report.words + 27)), rel=1e-3)


def test_unknown_words_are_counted_and_their_spelling_charged(words: Tokenizer) -> None:
    """Two of fifteen words; "zebra" has 5 bytes, "ünal" 5 in UTF-8."""
    text = frame(words, LINES, requests=False)
    report = evaluate_perplexity(model_of(words, scale=0), text)
    assert (report.unknown_tokens, text.unknown_words, text.unknown_bytes) == (18, 18, 90)
    assert report.unknown_share == 18 / report.tokens
    assert report.unknown_word_share == 18 / report.words
    extra = report.bits_per_byte_spelled - report.bits_per_byte
    assert extra == pytest.approx(8 * 90 / report.bytes)


def test_unknown_tokens_are_left_out_of_the_known_perplexity(words: Tokenizer) -> None:
    model, text = model_of(words, scale=20), frame(words, LINES, requests=False)
    found = predict(model.network, text, stride=6, floor=0.0).probabilities
    known = found[text.predicted != words.unk]
    report = evaluate_perplexity(model, text, floor=0.0)
    assert report.perplexity == pytest.approx(math.exp(-np.log(found).mean()))
    assert report.perplexity_known == pytest.approx(math.exp(-np.log(known).mean()))
    assert report.perplexity_known != pytest.approx(report.perplexity, rel=1e-3)


def test_the_floor_is_counted(words: Tokenizer) -> None:
    model, text = model_of(words, scale=10), frame(words, LINES, requests=False)
    found = predict(model.network, text, stride=6, floor=0.0).probabilities
    floor = float(np.median(found))
    assert 0 < floor < 1 / words.vocab_size
    report = evaluate_perplexity(model, text, floor=floor)
    touched = int((found < floor).sum())
    assert (report.floor, report.floored_tokens) == (floor, touched)
    assert 0.4 < report.floored_share <= 0.5
    assert report.perplexity == pytest.approx(math.exp(-np.log(np.maximum(found, floor)).mean()))
    assert report.perplexity < report.perplexity_unfloored
    assert report.perplexity_unfloored == pytest.approx(math.exp(-np.log(found).mean()))
    assert 0 < report.floor_mass < floor * words.vocab_size


def test_what_the_floor_adds_to_a_distribution(words: Tokenizer) -> None:
    model, text = model_of(words, scale=200), frame(words, LINES[:1], requests=False)
    row = torch.from_numpy(text.rows[0][:-1])[None]
    shares = torch.softmax(model.network.logits(model.network(row))[0], dim=-1).double()
    wanted = (0.001 - shares).clamp_min(0).sum(dim=-1)
    assert predict(model.network, text, stride=12, floor=0.001).added == pytest.approx(
        wanted.tolist(), rel=1e-3
    )


def test_the_n_gram_floor_stands_beside_it(words: Tokenizer) -> None:
    """Learnt on the very text it knows nearly everything, and the uniform model nothing."""
    text = frame(words, LINES, requests=False)
    report = evaluate_perplexity(model_of(words, scale=0), text, train=text)
    assert report.kneser_ney is not None
    assert report.kneser_ney.perplexity < 2
    assert report.kneser_ney.train_tokens == report.tokens
    assert report.ratio == pytest.approx(report.perplexity / report.kneser_ney.perplexity)
    record = report.as_record()
    assert record["kneser_ney"]["order"] == 4  # type: ignore[index]
    assert json.loads(json.dumps(record)) == record
    assert evaluate_perplexity(model_of(words, scale=0), text).as_record()["kneser_ney"] is None


def test_a_model_of_requests_reads_each_line_alone(random_model: LoadedModel) -> None:
    tokenizer = random_model.tokenizer
    text = frame(tokenizer, ["take me to dallas", "tell me a joke"], requests=True)
    assert [row.tolist() for row in text.rows] == [
        tokenizer.encode_prompt("take me to dallas"),
        tokenizer.encode_prompt("tell me a joke"),
    ]
    report = evaluate_perplexity(random_model, text)
    assert (report.tokens, report.words, report.documents) == (10, 8, 2)
    assert "[INTENT]" in report.framing


def test_wrong_floors_and_strides(words: Tokenizer) -> None:
    model, text = model_of(words, scale=0), frame(words, LINES[:3], requests=False)
    for floor in (-1e-6, 1 / words.vocab_size, 0.5):
        with pytest.raises(InvalidInput, match="floor"):
            evaluate_perplexity(model, text, floor=floor)
    for stride in (0, 13):
        with pytest.raises(InvalidInput, match="1 to 12"):
            evaluate_perplexity(model, text, stride=stride)


def test_words_of_many_pieces_are_one_word(words: Tokenizer) -> None:
    """Digits are tokens of their own: "1234" is one word and four tokens."""
    text = frame(words, ["the cat 1234"], requests=False)
    assert (text.words, len(text.predicted)) == (3, 2 + 4 + 1)


def test_documents_are_read(tmp_path: Path) -> None:
    jsonl, txt = tmp_path / "docs.jsonl", tmp_path / "lines.txt"
    jsonl.write_text('{"text": "one\\ntwo", "body": "b"}\n\n{"text": " three ", "intent": "x"}\n', "utf-8")
    txt.write_text(" one \n\n two\n", "utf-8")
    assert read_documents(jsonl) == ["one\ntwo", "three"]
    assert read_documents(txt) == ["one", "two"]
    with pytest.raises(InvalidData, match=r"docs\.jsonl:3.*--text-field.*text, intent"):
        read_documents(jsonl, text_field="body")
    with pytest.raises(InvalidInput, match="--text-field"):
        read_documents(txt, text_field="body")
    jsonl.write_text("{\n", "utf-8")
    with pytest.raises(InvalidData, match=r"docs\.jsonl:1"):
        read_documents(jsonl)
    jsonl.write_text("\n", "utf-8")
    with pytest.raises(InvalidData, match="no text"):
        read_documents(jsonl)
    with pytest.raises(NotFound, match=r"none\.jsonl"):
        read_documents(tmp_path / "none.jsonl")


def test_framed_text_has_words(words: Tokenizer) -> None:
    found: Framed = frame(words, ["the cat", " "], requests=False)
    assert found.documents == 1
    with pytest.raises(InvalidData, match="no words"):
        frame(words, [" "], requests=False)
