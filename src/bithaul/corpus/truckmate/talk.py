"""What else is said in a cab, before a request and after it: talk that no slot and no intent follows from.

`data/background.talk` holds it in the language of `grammar.py`, without values. A test reads labels from
whole utterances, so a word that would be a value somewhere cannot stand there.
"""

from __future__ import annotations

from bithaul.corpus.truckmate.data import lines
from bithaul.corpus.truckmate.dice import Dice
from bithaul.corpus.truckmate.grammar import Part, draw, parse

_FILE = "background.talk"
BEFORE = tuple(parse(line, {}) for line in lines(_FILE, "before"))
AFTER = tuple(parse(line, {}) for line in lines(_FILE, "after"))
BEFORE_SHARE = 0.1
AFTER_SHARE = 0.08


def around(parts: list[Part], dice: Dice) -> list[Part]:
    """`parts`, and in some requests talk in front of them or behind them."""
    if dice.chance(BEFORE_SHARE):
        parts = [*draw(dice.pick(BEFORE), dice, held=False), *parts]
    if dice.chance(AFTER_SHARE):
        parts = [*parts, *draw(dice.pick(AFTER), dice, held=False)]
    return parts
