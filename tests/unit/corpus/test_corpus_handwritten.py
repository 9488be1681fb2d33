"""The hand-written benchmark stays a benchmark: the grammar does not say its sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bithaul.corpus.files import sha256_of
from bithaul.corpus.truckmate.frames import Frame, frames
from bithaul.corpus.truckmate.grammar import Hole, Phrase, Word

DATA = Path(__file__).parents[3] / "benchmarks" / "data"
FILE, FRESH = DATA / "truckmate_handwritten.jsonl", DATA / "truckmate_fresh.jsonl"
LONG = {
    "what's": "what is", "i'm": "i am", "we're": "we are", "they're": "they are", "there's": "there is",
    "how's": "how is", "that's": "that is", "that'll": "that will", "who's": "who is", "i've": "i have",
    "i'll": "i will", "i'd": "i would", "gonna": "going to", "wanna": "want to", "gotta": "got to",
    "gimme": "give me", "lets": "let's",
}  # fmt: skip
SMALL_WORDS = {"uh", "um", "the", "a", "an"}
# Met by the grammar that was written blind, before anybody who worked on it had read the file.
MET_BEFORE = {
    "Is there a rest area on I-40 that I can pull into?",
    "does knoxville have a flying j",
    "hunt down the cheapest gas station around me wood ya",
    "is my log book in order",
    "don't let me forget to grease the fifth wheel",
    "put buy new wiper blades on my list",
    "just dropped 412 bucks on fuel in elko",
    "New tires in El Paso set me back $680.",
    "gimme an arrival time for the amazon warehouse",
    "how's load 30418 coming along",
    "is load 77205 running on schedule",
    "dispatch oughta know load 61877 got delivered",
    "put load seven seven oh two down as delayed",
    "got 88014 on the truck that load was picked up this morning",
    "Call my wife.",
    "how do you say good morning in spanish",
}


def plain(text: str) -> str:
    """Lower case without marks and small words, contractions written out, a space behind each word."""
    words = re.sub(r"[.,?!]", " ", text.lower()).split()
    parts = [part for word in words for part in LONG.get(word, word).split()]
    return "".join(f"{part} " for part in parts if part not in SMALL_WORDS)


def pattern_of(phrase: Phrase, slots: Mapping[str, str | list[str]]) -> str:
    """A phrase as a regular expression in which a value is any words, about as many as the real one has."""
    found = []
    for item in phrase.items:
        if isinstance(item, Word):
            found.append(re.escape(plain(item.word)))
        elif isinstance(item, Hole):
            value = str(slots.get(item.slot, ""))
            most = 6 if any(map(str.isdigit, value)) else len(value.split()) + 1
            found.append(rf"(?:\S+ ){{1,{most}}}" if value else "(?!)")
        else:
            found.append(f"(?:{'|'.join(pattern_of(option, slots) for option in item.options)})")
    return "".join(found)


def is_said_by(frame: Frame, row: dict[str, Any]) -> bool:
    pattern = pattern_of(frame.phrase, row["slots"]) if frame.intent == row["intent"] else "(?!)"
    return re.fullmatch(pattern, plain(row["text"])) is not None


SHA256 = {
    FILE: "74413751e77f03e61e381630efde11c0a8a942e819c4cfebc07cc5b857731046",
    FRESH: "f813460bacaf512c908748e6880194992b5aeaa05cd5927545801d23ce6e761e",
}


@pytest.mark.parametrize("file", SHA256, ids=lambda file: file.stem)
def test_the_file_is_the_one_that_was_written_before_any_result(file: Path) -> None:
    """Changing it after seeing results would make the figure worthless."""
    assert sha256_of(file.read_bytes()) == SHA256[file]


def met(file: Path) -> set[str]:
    """The sentences that a frame of the grammar says, with these values or with others."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {row["text"] for row in rows if any(is_said_by(frame, row) for frame in frames())}


def test_no_frame_says_a_hand_written_sentence() -> None:
    """Catches sentences that are copied into the grammar."""
    found = met(FILE)
    assert found <= MET_BEFORE, found - MET_BEFORE
    assert len(found) > 10, "the check sees nothing"


def test_no_frame_learns_from_the_fresh_sentences() -> None:
    """22 were met when they were written, by somebody who had not seen the grammar that was there already."""
    assert len(met(FRESH)) == 22
