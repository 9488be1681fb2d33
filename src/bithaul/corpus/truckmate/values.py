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
_SAID = frozenset(form for term in (*lex.CITIES, *lex.CITIES_HELDOUT) for form in term.forms)
_TOWN_WORDS = tuple(
    frozenset(word.lower() for word in words) for words in (lex.TOWN_LEADS, lex.TOWN_BASES, lex.TOWN_TAILS)
)


@dataclass(frozen=True)
class Spoken:
    """A value as it is said. `numeric` values have number words around which homophones are not safe."""

    words: str
    value: str
    numeric: bool = False


Kind = Callable[[Dice, bool], Spoken]

LOAD_LETTERS = tuple("bchkrtwxz")  # no d and no l, as in "l d 4471"
LOAD_MARKS = (*LOAD_LETTERS, "tx", "kx", "bl", "dr-", "lt-", "x-")
HOUR_SHAPES = ("{}", "{}", "{} o'clock", "half past {}", "quarter past {}", "quarter to {}")
DAY_SHAPES = ("{day} {part}", "{day} {part}", "tomorrow {part}", "{day}", "next {day}", "this {day}")
SPAN_SHAPES = (
    ("in {} hours", 2, 12, 1),
    ("in {} minutes", 2, 18, 5),
    ("in {} days", 2, 10, 1),
    ("{} minutes from now", 1, 12, 5),
    ("{} hours from now", 2, 12, 1),
)
SPANS = (
    "in an hour",
    "in half an hour",
    "in a couple of hours",
    "in a few minutes",
    "in a few hours",
    "in a week",
)


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


def is_city(words: Sequence[str]) -> bool:
    """Whether these words, as they are said, are a listed city or could be a small town."""
    return " ".join(words) in _SAID or any(
        len(words) == len(parts)
        and all(word in _TOWN_WORDS[part] for word, part in zip(words, parts, strict=True))
        for parts in set(_TOWN_SHAPES)
    )


def _city(dice: Dice, held: bool) -> Spoken:
    return _town(dice, held) if dice.chance(0.5) else LISTED_CITY(dice, held)


def _task(dice: Dice, held: bool) -> Spoken:
    def draw(dice: Dice) -> str:
        group = dice.pick(lex.TASKS)
        composed = len(group.objects) > group.listed and dice.chance(0.5)
        objects = group.objects[group.listed :] if composed else group.objects[: group.listed]
        task = f"{dice.pick(group.verbs)} {dice.pick(objects)}"
        return f"{task} {dice.pick(group.tails)}" if group.tails and dice.chance(0.25) else task

    value = _until(draw, "task", dice, held)
    return Spoken(value, value)


def _facility(dice: Dice, held: bool) -> Spoken:
    """A place of work: a listed one, or that of a known or an invented company."""

    def draw(dice: Dice) -> str:
        known = dice.chance(0.6)
        owner = dice.pick(lex.FACILITY_OWNERS) if known else _company(dice)
        return f"{owner} {dice.pick(lex.FACILITY_KINDS)}"

    if not held and dice.chance(0.4):
        term = dice.pick(lex.PLACES)
        return Spoken(dice.usual(term.forms), term.value)
    value = _until(draw, "place", dice, held)
    return Spoken(value if dice.chance(0.15) else f"the {value}", value)


def _company(dice: Dice) -> str:
    return f"{dice.pick(lex.FACILITY_LEADS)} {dice.pick(lex.FACILITY_TRADES)}"


def _place(dice: Dice, held: bool) -> Spoken:
    """The goal of a trip: a city or a facility."""
    return _facility(dice, held) if dice.chance(0.3) else _city(dice, held)


def _near(dice: Dice, held: bool) -> Spoken:
    if not held and dice.chance(0.25):
        term = dice.pick(lex.LANDMARKS)
        return Spoken(dice.usual(term.forms), term.value)
    return _marker(dice, held) if dice.chance(0.12) else _city(dice, held)


def _marker(dice: Dice, held: bool) -> Spoken:
    """An exit or a mile marker."""
    value = _until(lambda d: f"{d.pick(('exit', 'mile marker'))} {d.between(2, 399)}", "marker", dice, held)
    sign, _, number = value.rpartition(" ")
    said = numbers.highway_words(int(number)) if number[-2:] != "00" and dice.chance(0.4) else number
    return Spoken(f"{sign} {said}", value, numeric=True)


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
    """Three to eight digits, sometimes behind one or two letters."""

    def draw(dice: Dice) -> str:
        length = dice.pick((3, 4, 4, 4, 5, 5, 5, 6, 6, 7, 8))
        return str(dice.between(10 ** (length - 1), 10**length - 1))

    digits = _until(draw, "load", dice, held)
    way = dice.between(1, 20)
    if way <= 2:
        mark = dice.pick(LOAD_MARKS)
        return Spoken(f"{mark}{digits}", f"{mark}{digits}", numeric=True)
    if way == 3:
        mark = dice.pick(LOAD_LETTERS)
        said = numbers.spelled(digits) if dice.chance(0.4) else digits
        return Spoken(f"{mark} {said}", f"{mark}{digits}", numeric=True)
    if way <= 5 and len(digits) in (4, 6) and "00" not in (digits[2:4], digits[4:]):
        return Spoken(numbers.pairs(digits), digits, numeric=True)
    if way <= 10 and len(digits) <= 6:
        return Spoken(numbers.spelled(digits) if way > 6 else " ".join(digits), digits, numeric=True)
    return Spoken(digits, digits, numeric=True)


def _amount(dice: Dice, held: bool) -> Spoken:
    def draw(dice: Dice) -> str:
        if dice.chance(0.07):
            return str(dice.between(18, 59) * 50)
        whole = dice.between(3, 99) if dice.chance(0.6) else dice.between(100, 899)
        return f"{whole}.{dice.between(1, 19) * 5:02d}" if dice.chance(0.3) else str(whole)

    value = _until(draw, "amount", dice, held)
    whole, _, cents = value.partition(".")
    unit = dice.usual(("dollars", "bucks"))
    if cents:
        spoken = f"{numbers.words(int(whole))} dollars"
        exact = [
            f"{value} {unit}",
            f"${value}",
            f"{whole} dollars and {int(cents)} cents",
            f"{spoken} and {numbers.words(int(cents))} cents",
        ]
        if 10 <= int(whole) < 100 and int(cents) >= 10:
            exact += [f"{numbers.words(int(whole))} {numbers.words(int(cents))}", f"{whole} {cents}"]
        return Spoken(dice.pick(exact), value, numeric=True)
    spoken = numbers.words(int(value))
    said = [f"{value} {unit}", f"${value}", f"{spoken} {unit}", f"{spoken} {unit} even"]
    if spoken.startswith("one hundred"):
        said += [f"a {spoken[4:]} {unit}"] * 2
    if int(value) >= 10:
        said += [value, spoken]
    return Spoken(dice.pick(said), value, numeric=True)


def _price(dice: Dice, held: bool) -> Spoken:
    """An amount in front of a thing: "a nine dollar toll"."""
    value = _until(
        lambda d: str(d.between(3, 99) if d.chance(0.7) else d.between(100, 899)), "amount", dice, held
    )
    said = numbers.words(int(value)) if dice.chance(0.5) else value
    return Spoken(f"{said} {dice.usual(('dollar', 'buck'))}", value, numeric=True)


def _clock(dice: Dice) -> str:
    minutes = dice.pick(("", "", "", ":15", ":30", ":45"))
    return f"{dice.between(1, 12)}{minutes} {dice.pick(('am', 'pm'))}"


def _time(dice: Dice, held: bool) -> Spoken:
    """A clock time, after "at" or "by"."""
    if dice.chance(0.25):
        return _plain_hour(dice, held)
    value = _until(_clock, "when", dice, held)
    clock, half = value.split(" ")
    hour, _, minutes = clock.partition(":")
    if dice.chance(0.4):
        said = numbers.words(int(hour)) + (f" {numbers.words(int(minutes))}" if minutes else "")
    else:
        said = clock
        if dice.chance(0.15):
            return Spoken(f"{clock}{half}", value, numeric=True)
    tail = dice.usual((half, f"{half[0]} {half[1]}"))
    return Spoken(f"{said} {tail}", value, numeric=True)


def _plain_hour(dice: Dice, held: bool) -> Spoken:
    """A clock time without its half of the day: "6", "6 o'clock", "half past 6"."""

    def draw(dice: Dice) -> str:
        return dice.pick(HOUR_SHAPES).format(dice.between(1, 12))

    value = _until(draw, "when", dice, held)
    return Spoken(_in_words(value) if dice.chance(0.5) else value, value, numeric=True)


def _in_words(value: str) -> str:
    return " ".join(numbers.words(int(word)) if word.isdigit() else word for word in value.split())


def _day(dice: Dice, held: bool) -> Spoken:
    """A day or a part of one, without a preposition."""
    if not held and dice.chance(0.45):
        value = dice.pick(lex.MOMENTS)
        return Spoken(value, value)
    if dice.chance(0.15):
        return _day_and_time(dice, held)
    value = _until(_weekday, "when", dice, held)
    return Spoken(value, value)


def _weekday(dice: Dice) -> str:
    shape, day = dice.pick(DAY_SHAPES), dice.pick(lex.WEEKDAYS)
    return shape.format(day=day, part=dice.pick(lex.DAY_PARTS))


def _weekday_alone(dice: Dice, held: bool) -> Spoken:
    """After "on"."""
    value = _until(lambda d: f"{d.pick(('', '', 'next '))}{d.pick(lex.WEEKDAYS)}", "when", dice, held)
    return Spoken(value, value)


def _day_and_time(dice: Dice, held: bool) -> Spoken:
    """ "tomorrow at 6 am" is one value."""
    day = dice.pick(("tomorrow", "tomorrow", *lex.WEEKDAYS))
    time = _time(dice, held)
    return Spoken(f"{day} at {time.words}", f"{day} at {time.value}", numeric=True)


def _span(dice: Dice, held: bool) -> Spoken:
    """How long from now: "in 30 minutes" keeps its "in"."""

    def draw(dice: Dice) -> str:
        shape, low, high, step = dice.pick(SPAN_SHAPES)
        return shape.format(dice.between(low, high) * step)

    if not held and dice.chance(0.2):
        value = dice.pick(SPANS)
        return Spoken(value, value, numeric=True)
    value = _until(draw, "when", dice, held)
    return Spoken(_in_words(value) if dice.chance(0.4) else value, value, numeric=True)


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
    "home": _closed([Term("home", ("home",))]),
    "near": _near,
    "here": _closed(lex.HERE),
    "interstate": _interstate,
    "road": _road,
    "via": _via,
    "chain": _closed(lex.CHAINS),
    "stop": _closed(lex.STOP_TYPES),
    "purpose": _closed((*lex.PURPOSES, *lex.BREAK_PURPOSES)),
    "need": _closed(lex.PURPOSES),
    "trip_purpose": _closed(lex.TRIP_PURPOSES),
    "avoidable": _closed(lex.AVOIDABLE),
    "preference": _closed(lex.PREFERENCES),
    "best": _closed(lex.BEST),
    "reason": _closed(lex.REASONS),
    "stop_state": _closed(lex.STOP_STATES),
    "stop_cause": _closed(lex.STOP_CAUSES),
    "mishap": _closed(lex.MISHAPS),
    "weather": _pools(lex.WEATHER, lex.WEATHER_HELDOUT),
    "category": _closed(lex.CATEGORIES),
    "item": _closed([Term(term.value, (term.value,)) for term in lex.CATEGORIES]),
    "payee": _closed(lex.PAYEES),
    "done": _closed(lex.ACTIONS_DONE),
    "being": _closed(lex.ACTIONS_BEING),
    "action": _closed((*lex.ACTIONS_DONE, *lex.ACTIONS_BEING)),
    "task": _task,
    "load": _load_id,
    "amount": _amount,
    "price": _price,
    "time": _time,
    "when": _when,
    "day": _day,
    "weekday": _weekday_alone,
    "point": _closed(lex.POINTS),
    "part": _closed([Term(part, (part,)) for part in lex.DAY_PARTS[:3]]),
    "event": _closed([Term(event, (event,)) for event in lex.EVENTS]),
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
        "price",
        "time",
        "when",
        "day",
        "weekday",
    ]
)
