"""The generator: deterministic, quick, varied, and with every intent and slot of the requirements."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bithaul.corpus.files import sha256_of
from bithaul.corpus.generator import TextManifest, generate, read_corpus, write_corpus
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.corpus.truckmate.dice import Dice
from bithaul.corpus.truckmate.generator import Traced
from bithaul.corpus.truckmate.grammar import draw, parse
from bithaul.errors import CorruptFile, NotFound

INTENTS = {
    "start_trip",
    "stop_trip",
    "navigate",
    "find_poi",
    "route_preference",
    "hos_status",
    "hos_break_check",
    "hos_drive_remaining",
    "add_todo",
    "add_expense",
    "eta_query",
    "trip_status",
    "next_stop_query",
    "reroute",
    "update_load",
    "out_of_scope",
}
SLOTS = {
    "destination",
    "city",
    "via",
    "purpose",
    "stop_type",
    "chain",
    "near",
    "near_interstate",
    "preference",
    "task",
    "amount",
    "category",
    "reason",
    "load_id",
    "action",
    "stops",
    "weather",
    "when",
}


def test_all_intents_and_slots_are_there(train: list[Traced]) -> None:
    intents = Counter(found.example.intent for found in train)
    slots = Counter(name for found in train for name, _ in found.example.slots)
    assert set(intents) == INTENTS
    assert set(slots) == SLOTS
    assert min(intents.values()) > 1_000, intents
    assert min(slots.values()) > 200, slots
    assert 0.05 <= intents["out_of_scope"] / len(train) <= 0.1


def test_lines_are_unique_and_phrasings_many(train: list[Traced]) -> None:
    lines = {found.example.line() for found in train}
    assert len(lines) >= 0.9 * len(train)
    assert len({found.frame for found in train}) > 200


def test_lines_are_short(train: list[Traced], truckmate: Tokenizer) -> None:
    """Long lines cost training time: the mean stays under 35 tokens with the label."""
    ids = truckmate.encode_many([found.example for found in train])
    assert sum(map(len, ids)) / len(ids) < 35
    assert max(map(len, ids)) <= 129


def test_noise_of_every_kind_is_there(train: list[Traced]) -> None:
    texts = [found.example.text for found in train]
    shares = {
        "filler": sum(" uh " in f" {text} " or " um " in f" {text} " for text in texts),
        "correction": sum("no wait" in text or "scratch that" in text for text in texts),
        "misheard": sum("reroot" in text or "navi gate" in text or "eye" in text.split() for text in texts),
        "dialogue": sum(" over " in text for text in texts),
        "number words": sum("forty" in text for text in texts),
        "radio": sum("breaker" in text or "ten four" in text for text in texts),
    }
    assert all(count > 150 for count in shares.values()), shares
    clean = sum(found.example.text.isascii() for found in train)
    assert clean == len(train)


def test_a_dialogue_takes_its_label_from_an_earlier_turn(train: list[Traced]) -> None:
    """Catches turns put side by side: the last turn alone must not hold the value."""
    found = [
        t.example
        for t in train
        if " over " in t.example.text
        and t.example.intent == "navigate"
        and dict(t.example.slots).get("chain")
    ]
    assert found
    last_turns = [set(e.text.rpartition(" over ")[2].rstrip(".?!").split()) for e in found]
    assert all(turn & {"there", "their", "that", "it"} for turn in last_turns)


def test_equal_seeds_give_equal_examples_and_others_do_not() -> None:
    first = list(generate(count=300, seed=3, split="train"))
    assert first == list(generate(count=300, seed=3, split="train"))
    assert first != list(generate(count=300, seed=4, split="train"))
    assert first[:100] == list(generate(count=100, seed=3, split="train"))


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_bytes_do_not_depend_on_the_hash_seed(hash_seed: str, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from bithaul.corpus.generator import write_corpus; "
        f"write_corpus(Path({str(tmp_path)!r}), seed=11, count=400, heldout=60, shard_size=150)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    here = write_corpus(tmp_path / "here", seed=11, count=400, heldout=60, shard_size=150)
    assert TextManifest.load(tmp_path) == here
    for shard in here.shards:
        assert (tmp_path / shard.name).read_bytes() == (tmp_path / "here" / shard.name).read_bytes()


def test_a_golden_line_keeps_old_corpora_reproducible() -> None:
    """Changing what a seed gives needs a new GENERATOR_VERSION."""
    lines = "".join(example.line() + "\n" for example in generate(count=200, seed=1, split="train"))
    assert sha256_of(lines.encode()) == GOLDEN


GOLDEN = "8993a8665272ee72ab405e1b6fd0d3bbc540d5634af76008eb6c352f2b7b9ec8"


def test_fifty_thousand_lines_take_seconds() -> None:
    """5,000 in under 2 s of this process's time, so 50,000 in under 20."""
    start = time.process_time()
    assert sum(1 for _ in generate(count=5_000, seed=2, split="train")) == 5_000
    assert time.process_time() - start < 2


def test_a_folder_is_read_back_and_damage_is_seen(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, seed=5, count=120, heldout=30, shard_size=50)
    assert [shard.examples for shard in manifest.shards] == [50, 50, 20, 30]
    assert read_corpus(tmp_path, "train") == list(generate(count=120, seed=5, split="train"))
    assert len(read_corpus(tmp_path, "heldout")) == 30
    text = (tmp_path / "train-00001.txt").read_bytes()
    assert b"\r" not in text
    assert not text.startswith(b"\xef\xbb\xbf")
    (tmp_path / "train-00001.txt").write_bytes(text.replace(b"a", b"e", 1))
    with pytest.raises(CorruptFile, match="train-00001"):
        read_corpus(tmp_path, "train")
    with pytest.raises(NotFound, match="corpus generate"):
        TextManifest.load(tmp_path / "nowhere")


@pytest.mark.parametrize("frame", ["take (me", "take me)", "go {nowhere}", "a { b", "go <nowhere>"])
def test_a_malformed_frame_is_refused(frame: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        parse(frame, {})


def test_a_frame_offers_all_its_choices() -> None:
    phrase = parse("(a|b (c|)) <end>", {"end": "(x|y)"})
    said = {
        " ".join(w for part in draw(phrase, Dice(str(i)), held=False) for w in part.words) for i in range(80)
    }
    assert said == {"a x", "a y", "b c x", "b c y", "b x", "b y"}
