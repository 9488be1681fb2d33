"""Kinds of slot values: each draws how a value is said and what it is, from one of two pools.

The two pools of a kind never share a value. A kind without a held-out pool is closed (chains, reasons): its
values are met in training, and only in unseen company in the held-out split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bithaul.corpus.truckmate import lexicon as lex
from bithaul.corpus.truckmate import numbers
from bithaul.corpus.truckmate.data import Term
from bithaul.corpus.truckmate.dice import Dice, reserved

RESERVED_VALUES = 8  # one in so many numbers, ids, times, towns and tasks is held out
_TOWN_SHAPES = (*((0, 1),) * 3, *((1, 2),) * 3, (0, 1, 2))  # of lead, base and tail
_LISTED = frozenset(term.value for term in (*lex.CITIES, *lex.CITIES_HELDOUT))


@dataclass(frozen=True)
class Spoken:
    """A value as it is said. `numeric` values have number words around which homophones are not safe."""

    words: str
    value: str
    numeric: bool = False


Kind = Callable[[Dice, bool], Spoken]


def _closed(terms: Sequence[Term]) -> Kind:
    def draw(dice: Dice, held: bool) -> Spoken:  # noqa: ARG001 - the shape of every kind
        term = dice.pick(terms)
        return Spoken(dice.usual(term.forms), term.value)

    return draw


def _pools(train: Sequence[Term], heldout: Sequence[Term]) -> Kind:
    def draw(dice: Dice, held: bool) -> Spoken:
        term = dice.pick(heldout if held else train)
        return Spoken(dice.usual(term.forms), term.value)

    return draw


def _until(draw: Callable[[Dice], str], kind: str, dice: Dice, held: bool) -> str:
    while True:
        value = draw(dice)
        if reserved(f"{kind}:{value}", RESERVED_VALUES) == held:
            return value


def _town(dice: Dice, held: bool) -> Spoken:
    """A small town's name, composed of common parts; never one of the listed cities."""

    def draw(dice: Dice) -> str:
        while True:
            parts = dice.pick(lex.TOWN_LEADS), dice.pick(lex.TOWN_BASES), dice.pick(lex.TOWN_TAILS)
            words = [parts[i] for i in dice.pick(_TOWN_SHAPES)]
            name = " ".join(words)
            # "North Wayne Junction" could be the beginning of "North Wayne, Junction Heights".
            two_towns = len(words) == 3 and words[2] in lex.TOWN_BASES
            if name not in _LISTED and len(set(words)) == len(words) and not two_towns:
                return name

    value = _until(draw, "town", dice, held)
    return Spoken(value.lower(), value)


def _city(dice: Dice, held: bool) -> Spoken:
    return _town(dice, held) if dice.chance(0.5) else LISTED_CITY(dice, held)


def _task(dice: Dice, held: bool) -> Spoken:
    def draw(dice: Dice) -> str:
        verbs, objects = dice.pick(lex.TASKS)
        return f"{dice.pick(verbs)} {dice.pick(objects)}"

    value = _until(draw, "task", dice, held)
    return Spoken(value, value)


def _facility(dice: Dice, held: bool) -> Spoken:
    if not held and dice.chance(0.5):
        term = dice.pick(lex.PLACES)
        return Spoken(dice.usual(term.forms), term.value)
    value = _until(
        lambda d: f"{d.pick(lex.FACILITY_OWNERS)} {d.pick(lex.FACILITY_KINDS)}", "place", dice, held
    )
    return Spoken(f"the {value}", value)


def _place(dice: Dice, held: bool) -> Spoken:
    """The goal of a trip: a city or a facility."""
    return _facility(dice, held) if dice.chance(0.3) else _city(dice, held)


def _near(dice: Dice, held: bool) -> Spoken:
    if not held and dice.chance(0.25):
        term = dice.pick(lex.LANDMARKS)
        return Spoken(dice.usual(term.forms), term.value)
    return _city(dice, held)


def _interstate(dice: Dice, held: bool) -> Spoken:
    number = dice.pick(lex.INTERSTATES_HELDOUT if held else lex.INTERSTATES)
    lead = dice.usual(("i", "interstate", "i-", "inter state"))
    if lead == "i-":
        return Spoken(f"i-{number}", f"I-{number}", numeric=True)
    said = numbers.words(number) if dice.chance(0.4) else str(number)
    return Spoken(f"{lead} {said}", f"I-{number}", numeric=True)


def _road(dice: Dice, held: bool) -> Spoken:
    """An interstate or a U.S. highway."""
    if dice.chance(0.65):
        return _interstate(dice, held)
    number = dice.pick(lex.US_ROUTES_HELDOUT if held else lex.US_ROUTES)
    lead = dice.usual(("us", "highway", "u s", "us route", "high way"))
    said = numbers.highway_words(number) if dice.chance(0.35) else str(number)
    return Spoken(f"{lead} {said}", f"US-{number}", numeric=True)


def _via(dice: Dice, held: bool) -> Spoken:
    return _road(dice, held) if dice.chance(0.5) else _city(dice, held)


def _load_id(dice: Dice, held: bool) -> Spoken:
    def draw(dice: Dice) -> str:
        length = dice.between(4, 6)
        return str(dice.between(10 ** (length - 1), 10**length - 1))

    value = _until(draw, "load", dice, held)
    return Spoken(numbers.spelled(value) if dice.chance(0.25) else value, value, numeric=True)


def _amount(dice: Dice, held: bool) -> Spoken:
    def draw(dice: Dice) -> str:
        whole = dice.between(3, 99) if dice.chance(0.6) else dice.between(100, 899)
        return f"{whole}.{dice.between(1, 19) * 5:02d}" if dice.chance(0.3) else str(whole)

    value = _until(draw, "amount", dice, held)
    whole, _, cents = value.partition(".")
    unit = dice.usual(("dollars", "bucks"))
    if cents:
        exact = (
            f"{value} {unit}",
            f"${value}",
            f"{whole} dollars and {int(cents)} cents",
            f"{numbers.words(int(whole))} dollars and {numbers.words(int(cents))} cents",
        )
        return Spoken(dice.pick(exact), value, numeric=True)
    said = (f"{value} {unit}", f"${value}", f"{numbers.words(int(value))} {unit}")
    return Spoken(dice.pick(said), value, numeric=True)


def _clock(dice: Dice) -> str:
    minutes = dice.pick(("", "", ":15", ":30", ":45"))
    return f"{dice.between(1, 12)}{minutes} {dice.pick(('am', 'pm'))}"


def _time(dice: Dice, held: bool) -> Spoken:
    """A clock time, after "at" or "by"."""
    value = _until(_clock, "when", dice, held)
    clock, half = value.split(" ")
    hour, _, minutes = clock.partition(":")
    if dice.chance(0.4):
        said = numbers.words(int(hour)) + (f" {numbers.words(int(minutes))}" if minutes else "")
    else:
        said = clock
    tail = dice.usual((half, f"{half[0]} {half[1]}"))
    return Spoken(f"{said} {tail}", value, numeric=True)


def _day(dice: Dice, held: bool) -> Spoken:
    """A day or a part of one, without a preposition."""
    if not held and dice.chance(0.5):
        value = dice.pick(lex.MOMENTS)
        return Spoken(value, value)
    value = _until(lambda d: f"{d.pick(lex.WEEKDAYS)} {d.pick(lex.DAY_PARTS)}", "when", dice, held)
    return Spoken(value, value)


def _span(dice: Dice, held: bool) -> Spoken:
    """How long from now: "in 30 minutes" keeps its "in"."""

    def draw(dice: Dice) -> str:
        if dice.chance(0.5):
            return f"in {dice.between(2, 12)} hours"
        return f"in {dice.between(2, 18) * 5} minutes"

    value = _until(draw, "when", dice, held)
    lead, number, unit = value.split(" ")
    said = numbers.words(int(number)) if dice.chance(0.4) else number
    return Spoken(f"{lead} {said} {unit}", value, numeric=True)


def _when(dice: Dice, held: bool) -> Spoken:
    return dice.pick((_day, _day, _span))(dice, held)


def _number(dice: Dice, held: bool) -> Spoken:  # noqa: ARG001
    number = dice.between(2, 99)
    return Spoken(numbers.words(number) if dice.chance(0.5) else str(number), str(number), numeric=True)


LISTED_CITY = _pools(lex.CITIES, lex.CITIES_HELDOUT)

KINDS: dict[str, Kind] = {
    "city": _city,
    "place": _place,
    "facility": _facility,
    "near": _near,
    "here": _closed(lex.HERE),
    "interstate": _interstate,
    "road": _road,
    "via": _via,
    "chain": _closed(lex.CHAINS),
    "stop": _closed(lex.STOP_TYPES),
    "purpose": _closed(lex.PURPOSES),
    "trip_purpose": _closed(lex.TRIP_PURPOSES),
    "avoidable": _closed(lex.AVOIDABLE),
    "preference": _closed(lex.PREFERENCES),
    "best": _closed(lex.BEST),
    "reason": _closed(lex.REASONS),
    "stop_reason": _closed(lex.STOP_REASONS),
    "weather": _pools(lex.WEATHER, lex.WEATHER_HELDOUT),
    "category": _closed(lex.CATEGORIES),
    "action": _closed(lex.ACTIONS),
    "task": _task,
    "load": _load_id,
    "amount": _amount,
    "time": _time,
    "when": _when,
    "day": _day,
    "number": _number,
}
OPEN_KINDS = frozenset(
    [
        "city",
        "place",
        "facility",
        "near",
        "interstate",
        "road",
        "via",
        "weather",
        "task",
        "load",
        "amount",
        "time",
        "when",
        "day",
    ]
)
