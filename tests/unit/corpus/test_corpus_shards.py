"""Shards and the corpus folder: whole examples, exact bytes, damage seen, nothing lost."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from bithaul.corpus.build import CorpusManifest, build_corpus
from bithaul.corpus.example import Example, TextLine
from bithaul.corpus.labels import LabelSet
from bithaul.corpus.shards import Shard, ShardInfo, targets_of, write_shard
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.corpus.truckmate.generator import generate
from bithaul.errors import CorruptFile, InvalidData, InvalidInput, NotFound

ROWS = [[2, 7, 8, 3], [2, 3], [2, 9, 9, 9, 3]]


def opened(folder: Path, info: ShardInfo) -> Shard:
    return Shard.open(folder / f"{info.id}.bin", folder / f"{info.id}.idx", verify=info)


def test_the_format_on_disk(tmp_path: Path) -> None:
    info = write_shard(tmp_path, "train-00000", ROWS)
    flat = [token for row in ROWS for token in row]
    assert (tmp_path / "train-00000.bin").read_bytes() == np.array(flat, dtype="<i4").tobytes()
    assert (tmp_path / "train-00000.idx").read_bytes() == np.array([0, 4, 6, 11], dtype="<u8").tobytes()
    assert (info.examples, info.tokens, info.bytes, info.index_bytes) == (3, 11, 44, 32)


def test_a_slice_is_made_of_whole_examples(tmp_path: Path) -> None:
    shard = opened(tmp_path, write_shard(tmp_path, "s", ROWS))
    assert len(shard) == 3
    assert [row.tolist() for row in shard.slice(1, 2)] == ROWS[1:]
    assert shard.example(0).dtype == np.int32
    assert shard.slice(3, 0) == []
    for first, count in ((2, 2), (-1, 1), (0, -1)):
        with pytest.raises(InvalidInput):
            shard.slice(first, count)
    with pytest.raises(InvalidInput):
        shard.example(3)


@pytest.mark.parametrize("bad", [50, -1])
def test_tokens_outside_the_vocabulary_are_seen(bad: int, tmp_path: Path) -> None:
    """A hash only says that the bytes are those that were sent, not that the model knows them."""
    good = np.array([1, 49, 7], dtype="<i4")
    for name, tokens in (("good", good), ("bad", np.append(good, bad).astype("<i4"))):
        (tmp_path / f"{name}.bin").write_bytes(tokens.tobytes())
        (tmp_path / f"{name}.idx").write_bytes(np.array([0, len(tokens)], dtype="<u8").tobytes())
    Shard.open(tmp_path / "good.bin", tmp_path / "good.idx").require_vocabulary(50)
    with pytest.raises(CorruptFile, match="vocabulary of 50"):
        Shard.open(tmp_path / "bad.bin", tmp_path / "bad.idx").require_vocabulary(50)


def test_an_empty_shard_opens(tmp_path: Path) -> None:
    assert len(opened(tmp_path, write_shard(tmp_path, "empty", []))) == 0


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("damage", ["flip", "short", "long", "gone"])
def test_damage_is_seen(suffix: str, damage: str, tmp_path: Path) -> None:
    info = write_shard(tmp_path, "s", ROWS)
    path = tmp_path / f"s.{suffix}"
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    changed = {"flip": bytes(data), "short": bytes(data[:-4]), "long": bytes(data) + b"\0" * 4}
    path.unlink()
    if damage != "gone":
        path.write_bytes(changed[damage])
    with pytest.raises(NotFound if damage == "gone" else CorruptFile):
        opened(tmp_path, info)


@pytest.mark.parametrize("offsets", [[], [1, 11], [0, 12], [0, 8, 4, 11]])
def test_an_index_that_does_not_fit_is_refused_without_a_manifest(offsets: list[int], tmp_path: Path) -> None:
    write_shard(tmp_path, "s", ROWS)
    (tmp_path / "s.idx").write_bytes(np.array(offsets, dtype="<u8").tobytes())
    with pytest.raises(CorruptFile):
        Shard.open(tmp_path / "s.bin", tmp_path / "s.idx")


def build(folder: Path, *, seed: int = 1) -> CorpusManifest:
    train = list(generate(count=700, seed=1, split="train"))
    heldout = list(generate(count=300, seed=1, split="heldout"))
    return build_corpus(
        folder, train, heldout, max_tokens=129, seed=seed, shard_examples=300, min_frequency=1
    )


def test_a_corpus_folder_holds_every_example_once(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    assert manifest == CorpusManifest.load(tmp_path)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert manifest.tokenizer_sha256 == tokenizer.sha256
    assert [shard.examples for shard in manifest.shards] == [300, 300, 100]
    lines = [
        tokenizer.decode(row.tolist())
        for info in manifest.shards
        for row in opened(tmp_path, info).slice(0, info.examples)
    ]
    wanted = [tokenizer.normalise_example(e) for e in generate(count=700, seed=1, split="train")]
    assert sorted(lines) == sorted(wanted)
    assert lines != wanted, "the order of training was not shuffled"
    held = [json.loads(line) for line in (tmp_path / "heldout.jsonl").read_text().splitlines()]
    assert held == [e.as_record() for e in generate(count=300, seed=1, split="heldout")]
    assert manifest.probe is not None
    assert manifest.probe.examples == 256
    assert manifest.train_tokens == sum(shard.tokens for shard in manifest.shards)
    assert manifest.unknown_share == 0


def test_equal_input_gives_equal_bytes_and_the_seed_the_order(tmp_path: Path) -> None:
    build(tmp_path / "a")
    build(tmp_path / "b")
    build(tmp_path / "c", seed=2)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert (tmp_path / "a" / "train-00000.bin").read_bytes() != (
        tmp_path / "c" / "train-00000.bin"
    ).read_bytes()
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (
        tmp_path / "c" / "tokenizer.json"
    ).read_bytes()


def test_the_vocabulary_comes_from_training_alone(tmp_path: Path) -> None:
    train = [Example("go home", "go"), Example("go home now", "go")]
    manifest = build_corpus(
        tmp_path, train, [Example("fly home", "go")], max_tokens=20, seed=1, min_frequency=1
    )
    assert manifest.unknown_share == 0
    assert manifest.heldout_unknown_share > 0


def test_long_examples_are_counted_and_left_out_whole(tmp_path: Path) -> None:
    """Catches a truncated example: its label would be gone."""
    train = [Example("go " * 50, "go"), Example("go home", "go")]
    manifest = build_corpus(tmp_path, train, [Example("go " * 60, "go")], max_tokens=20, seed=1)
    assert (manifest.left_out, manifest.train_examples, manifest.heldout_examples) == (2, 1, 0)
    assert manifest.probe is None
    with pytest.raises(InvalidData, match="larger context"):
        build_corpus(tmp_path, train[:1], [], max_tokens=20, seed=1)


@pytest.mark.parametrize(("lines", "examples"), [(4000, 63), (60, 7)])
def test_the_probe_of_plain_text_is_bounded_in_tokens(tmp_path: Path, lines: int, examples: int) -> None:
    """Catches a probe that takes a third of a worker's time: pieces of text are as long as the context."""
    held = [TextLine(f"line {i} has these eleven words in it and no more") for i in range(lines)]
    manifest = build_corpus(tmp_path, [TextLine("some words")], held, max_tokens=129, seed=1)
    assert manifest.probe is not None
    assert manifest.probe.examples == examples
    assert manifest.probe.tokens <= 8192
    pieces = [
        tuple(row) for info in manifest.heldout for row in opened(tmp_path, info).slice(0, info.examples)
    ]
    probe = [tuple(row) for row in opened(tmp_path, manifest.probe).slice(0, examples)]
    places = [pieces.index(row) for row in probe]
    assert places == sorted(set(places))


def test_plain_text_loses_no_token(tmp_path: Path) -> None:
    lines = [TextLine(" ".join(f"w{i % 7}" for i in range(n))) for n in (3, 40, 0, 11)]
    manifest = build_corpus(tmp_path, lines, lines[:1], max_tokens=16, seed=1, min_frequency=1)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    stream = [i for line in lines if line.text for i in tokenizer.encode_example(line)]
    rows = [r.tolist() for s in manifest.shards for r in opened(tmp_path, s).slice(0, s.examples)]
    assert max(map(len, rows)) <= 16
    predicted = sorted(pair for row in rows for pair in itertools.pairwise(row))
    assert predicted == sorted(itertools.pairwise(stream))
    assert manifest.kind == "text"


def test_bad_input_to_build(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="no training examples"):
        build_corpus(tmp_path, [], [], max_tokens=20, seed=1)
    with pytest.raises(InvalidData, match="mixed"):
        build_corpus(tmp_path, [Example("a", "b"), TextLine("c")], [], max_tokens=20, seed=1)
    with pytest.raises(InvalidData, match="held-out intent 'x'"):
        build_corpus(tmp_path, [Example("a", "b")], [Example("a", "x")], max_tokens=20, seed=1)
    with pytest.raises(InvalidData, match="held-out slot 's'"):
        build_corpus(tmp_path, [Example("a", "b")], [Example("a", "b", (("s", "a"),))], max_tokens=20, seed=1)
    with pytest.raises(NotFound, match="manifest"):
        CorpusManifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CorruptFile, match="manifest"):
        CorpusManifest.load(tmp_path)


def test_labels_keep_the_spelling_of_the_data(tmp_path: Path) -> None:
    examples = [
        Example("to the flying j", "Go", (("Chain", "Flying J"),)),
        Example("to flying j", "Go", (("Chain", "Flying J"), ("n", "3"))),
        Example("to flying j", "Go", (("Chain", "FLYING J"),)),
        Example("stop", "stop"),
    ]
    labels = LabelSet.from_examples(examples, Tokenizer.train(examples, min_frequency=1))
    assert labels.intents == ["Go", "stop"]
    assert labels.slots == {"Go": ["Chain", "n"], "stop": []}
    assert labels.spell("flying j") == "Flying J"
    assert labels.spell("unheard of") == "unheard of"
    labels.save(tmp_path / "labels.json")
    assert LabelSet.load(tmp_path / "labels.json") == labels
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(CorruptFile):
        LabelSet.load(tmp_path / "labels.json")


def test_targets_are_counted_without_reading_the_tokens(tmp_path: Path) -> None:
    """Catches an off-by-one that would let a report weigh more than its examples, or refuse an honest one."""
    write_shard(tmp_path, "train-00000", ROWS)
    index = tmp_path / "train-00000.idx"
    for first, last in itertools.combinations(range(4), 2):
        assert targets_of(index, first, last - first) == sum(len(row) - 1 for row in ROWS[first:last])
    assert targets_of(index, 1, 0) == 0
    with pytest.raises(CorruptFile, match="ends before example 4"):
        targets_of(index, 1, 3)
