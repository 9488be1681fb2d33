"""Augmentation: text and label change together, at the rates asked for, and equal seeds give equal bytes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from bithaul.corpus.augment import (
    Augmentation,
    WordNoise,
    parse_augmentation,
    suggested,
    swap_values,
    value_pools,
)
from bithaul.corpus.build import build_corpus
from bithaul.corpus.example import Example, TextLine
from bithaul.corpus.shards import Shard
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import InvalidInput

SONGS = [
    Example("Play Blue Monday by New Order", "play", (("song", "Blue Monday"), ("artist", "New Order"))),
    Example("play yesterday by the beatles", "play", (("song", "yesterday"), ("artist", "the beatles"))),
    Example("play heroes by david bowie please", "play", (("song", "heroes"), ("artist", "david bowie"))),
    Example("stop the music", "stop"),
]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train([*SONGS, *SONGS], word_pieces=60)


def test_pools_hold_values_that_were_said(words: Tokenizer) -> None:
    unsaid = Example("play it loud", "play", (("song", "roxanne"), ("artist", "it")))
    twice = Example("play play", "play", (("song", "play"),))
    assert value_pools([*SONGS, unsaid, twice], words) == {
        "song": ["blue monday", "heroes", "yesterday"],
        "artist": ["david bowie", "it", "new order", "the beatles"],
    }


def test_a_swapped_value_changes_text_and_label_together(words: Tokenizer) -> None:
    """A label that keeps the old value would teach the model to invent."""
    pools, dice = value_pools(SONGS, words), random.Random(0)
    seen = set()
    for _ in range(200):
        new = swap_values(SONGS[0], pools, words, 1.0, dice)
        slots = dict(new.slots)
        assert new.text == f"play {slots['song']} by {slots['artist']}"
        assert slots["song"] in pools["song"]
        assert slots["artist"] in pools["artist"]
        seen.add(new.text)
    assert len(seen) == 9
    assert swap_values(SONGS[0], pools, words, 0.0, dice) == SONGS[0]
    assert swap_values(SONGS[3], pools, words, 1.0, dice) == SONGS[3]


def test_values_inside_each_other_are_not_replaced(words: Tokenizer) -> None:
    """A new artist would leave the song's label without its words."""
    example = Example("play new order live", "play", (("song", "new order live"), ("artist", "new order")))
    pools = {"song": ["heroes"], "artist": ["cher"]}
    assert swap_values(example, pools, words, 1.0, random.Random(0)) == example


def test_a_value_said_twice_stays(words: Tokenizer) -> None:
    """Which of the two places was meant is not known; replacing one would leave the other as a trap."""
    example = Example("play heroes no really play heroes", "play", (("song", "heroes"),))
    assert swap_values(example, {"song": ["roxanne"]}, words, 1.0, random.Random(0)) == example


def test_a_list_stays_as_it_is(words: Tokenizer) -> None:
    example = Example("via waco and gary", "go", (("stops", ("waco", "gary")),))
    assert swap_values(example, {"stops": ["rome"]}, words, 1.0, random.Random(0)) == example


def test_word_noise_treats_a_word_alike_in_text_and_label(words: Tokenizer) -> None:
    noise = WordNoise(words, Augmentation(spell=0.4, drop=0.2))
    row = words.encode_example(Example("heroes", "play", (("song", "heroes"),)))
    heroes = words.encode_words("heroes")[0][0]
    forms = {"spelled": words.spelled(heroes), "hidden": [words.unk], "kept": [heroes]}
    assert "".join(map(words.token, forms["spelled"])) == "▁heroes"
    seen, dice = Counter[str](), random.Random(1)
    for _ in range(1000):
        new = noise.apply(row, dice)
        form = next(name for name, ids in forms.items() if new[2 : new.index(words.intent)] == ids)
        assert new == [i for token in row for i in (forms[form] if token == heroes else [token])]
        seen[form] += 1
    assert 340 < seen["spelled"] < 460
    assert 150 < seen["hidden"] < 250


def test_noise_leaves_frame_names_digits_and_marks_alone(words: Tokenizer) -> None:
    noise = WordNoise(words, Augmentation(drop=1.0))
    row = words.encode_example(Example("play 42", "play", (("song", "42"),)))
    changed = noise.apply(row, random.Random(0))
    assert [i for i in changed if i != words.unk] == [i for i in row if words.token(i) != "▁play"]


def _rows(folder: Path, ids: list[str]) -> list[list[int]]:
    shards = [Shard.open(folder / f"{i}.bin", folder / f"{i}.idx") for i in ids]
    return [list(row) for shard in shards for row in shard.slice(0, len(shard))]


def test_copies_differ_and_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    augmentation = Augmentation(copies=5, swap=0.5, spell=0.2, drop=0.1)
    manifests = [
        build_corpus(
            tmp_path / name,
            SONGS * 5,
            SONGS,
            max_tokens=65,
            seed=seed,
            min_frequency=1,
            word_pieces=60,
            augmentation=augmentation,
        )
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = manifests
    assert a.shards == b.shards != c.shards
    assert a.train_examples == 100
    assert a.augmentation == augmentation
    rows = _rows(tmp_path / "a", [s.id for s in a.shards])
    assert len({tuple(row) for row in rows}) > 40
    held = _rows(tmp_path / "a", [s.id for s in a.heldout])
    assert held == Tokenizer.load(tmp_path / "a" / "tokenizer.json").encode_many(SONGS)


def test_small_labelled_data_is_written_several_times() -> None:
    assert suggested(SONGS, generated=False) == Augmentation(copies=8, swap=0.5, spell=0.1, drop=0.05)
    assert suggested(SONGS * 10_000, generated=False).copies == 3
    assert suggested(SONGS * 100_000, generated=False).copies == 1
    assert suggested(SONGS, generated=True).copies == 1
    assert suggested([TextLine("a b c")], generated=False) == Augmentation()


def test_an_augmentation_as_people_write_it() -> None:
    assert parse_augmentation("none") == Augmentation()
    assert parse_augmentation("copies=3, swap=0.5") == Augmentation(copies=3, swap=0.5)


@pytest.mark.parametrize("text", ["", "copies", "copies=0", "swap=2", "shuffle=1", "copies=2.5", "a=b=c"])
def test_what_is_no_augmentation_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="no augmentation; write none"):
        parse_augmentation(text)


def test_plain_text_is_not_augmented(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Plain text"):
        build_corpus(
            tmp_path, [TextLine("a b c")], [], max_tokens=9, seed=0, augmentation=Augmentation(copies=2)
        )
