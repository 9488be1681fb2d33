"""A small language for phrasings, and what comes out of it: an utterance made of parts.

`(a|b|)` is a choice (here of a, b or nothing), `<rule>` another phrase, `{slot}` or `{slot:kind}` a value
drawn from `values.KINDS`. Everything else is a word. A frame is parsed once and then drawn from many times.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bithaul.corpus.truckmate.dice import Dice
from bithaul.corpus.truckmate.values import KINDS, OPEN_KINDS, Spoken

_TOKEN = re.compile(r"\s*(?:([(|)])|\{(\w+)(?::(\w+))?\}|<(\w+)>|([^\s(|){}<>]+))")


@dataclass(frozen=True)
class Part:
    """Some words of an utterance, and the slot and value they stand for, if any."""

    words: tuple[str, ...]
    slot: str | None = None
    value: str = ""
    kind: str = ""
    numeric: bool = False
    held: bool = False


@dataclass(frozen=True)
class Word:
    word: str


@dataclass(frozen=True)
class Hole:
    slot: str
    kind: str


@dataclass(frozen=True)
class Choice:
    options: tuple[Phrase, ...]


Shape = tuple[Word | Hole, ...]


@dataclass(frozen=True)
class Phrase:
    items: tuple[Word | Hole | Choice, ...]

    def has_values(self) -> bool:
        """Whether some value may occur in it."""
        return any(
            isinstance(item, Hole) or (isinstance(item, Choice) and any(o.has_values() for o in item.options))
            for item in self.items
        )


def parse(text: str, rules: Mapping[str, str]) -> Phrase:
    """The phrase behind a frame. ValueError for a frame that is not well formed: a defect of the grammar."""
    tokens = list(_TOKEN.finditer(text))
    if "".join(token.group(0) for token in tokens).strip() != text.strip():
        raise ValueError(f"frame is not well formed: {text}")
    phrase, used = _choice(tokens, 0, rules)
    if used != len(tokens):
        raise ValueError(f"unbalanced brackets: {text}")
    return phrase.options[0] if len(phrase.options) == 1 else Phrase((phrase,))


def _choice(tokens: list[re.Match[str]], at: int, rules: Mapping[str, str]) -> tuple[Choice, int]:
    options: list[Phrase] = []
    items: list[Word | Hole | Choice] = []
    while at < len(tokens):
        mark, slot, kind, rule, word = tokens[at].groups()
        at += 1
        if mark == "(":
            inner, at = _choice(tokens, at, rules)
            if at >= len(tokens) or tokens[at].group(1) != ")":
                raise ValueError("a bracket is not closed")
            at += 1
            items.append(inner)
        elif mark == "|":
            options.append(Phrase(tuple(items)))
            items = []
        elif mark == ")":
            at -= 1
            break
        elif slot:
            if (kind or slot) not in KINDS:
                raise ValueError(f"unknown kind {kind or slot!r}")
            items.append(Hole(slot, kind or slot))
        elif rule:
            items += [Choice((parse(rules[rule], rules),))]
        else:
            items.append(Word(word))
    options.append(Phrase(tuple(items)))
    return Choice(tuple(options)), at


def shape(phrase: Phrase, dice: Dice) -> Shape:
    """One way through a phrase, all choices made: its words and holes in order."""
    found: list[Word | Hole] = []
    _walk(phrase, dice, found)
    return tuple(found)


def _walk(phrase: Phrase, dice: Dice, out: list[Word | Hole]) -> None:
    for item in phrase.items:
        if isinstance(item, Choice):
            _walk(dice.pick(item.options) if len(item.options) > 1 else item.options[0], dice, out)
        else:
            out.append(item)


def fill(items: Shape, dice: Dice, *, held: bool) -> list[Part]:
    """One utterance of a shape. With `held`, about half of the values come from the held-out pools."""
    parts: list[Part] = []
    for item in items:
        if isinstance(item, Word):
            parts.append(Part((item.word,)))
        else:
            from_heldout = held and item.kind in OPEN_KINDS and dice.chance(0.7)
            spoken = KINDS[item.kind](dice, from_heldout)
            parts.append(as_part(item.slot, item.kind, spoken, held=from_heldout))
    return parts


def draw(phrase: Phrase, dice: Dice, *, held: bool) -> list[Part]:
    """One utterance of a phrase: a shape of it, filled."""
    return fill(shape(phrase, dice), dice, held=held)


def as_part(slot: str, kind: str, spoken: Spoken, *, held: bool = False) -> Part:
    return Part(tuple(spoken.words.split()), slot, spoken.value, kind, spoken.numeric, held)


def phrasings(phrase: Phrase) -> list[str]:
    """Every phrasing of a frame, values as `{slot}`: the whole finite language, repeats included."""
    said = [""]
    for item in phrase.items:
        if isinstance(item, Word):
            endings = [item.word]
        elif isinstance(item, Hole):
            endings = [f"{{{item.slot}}}"]
        else:
            endings = [text for option in item.options for text in phrasings(option)]
        said = [f"{text} {ending}".strip() for text in said for ending in endings]
    return said
