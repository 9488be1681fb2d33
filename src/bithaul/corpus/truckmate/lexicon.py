"""The words Truck Mate knows: cities, chains, stops, reasons and so on, from `data/lexicon.terms`.

Data only. Names that are held out are made of words which training values also contain, in another order, so
that a word-level model can say them; `tests/unit/corpus` proves both halves of that sentence.
"""

from __future__ import annotations

from typing import NamedTuple

from bithaul.corpus.truckmate.data import Term, lines, sections, terms

_FILE = "lexicon.terms"


class TaskGroup(NamedTuple):
    """Tasks are a verb, an object and sometimes a tail: "call" "the broker" "about the rate".

    Objects of things to buy are also composed, and `listed` tells how many are not.
    """

    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    tails: tuple[str, ...]
    listed: int


def _numbers(title: str) -> tuple[int, ...]:
    return tuple(int(number) for line in lines(_FILE, title) for number in line.split())


def _tasks() -> tuple[TaskGroup, ...]:
    """Verbs, the objects that go with them, and what may follow; once for each listed object."""
    found: list[TaskGroup] = []
    for title, body in sections(_FILE):
        name, _, tail = title.partition(" ")
        if name == "tasks":
            tails = lines(_FILE, f"task tails {tail}") if tail else ()
            verbs = tuple(verb.strip() for verb in body[0].split(","))
            listed = len(body) - 1
            composed = _composed("task leads", "task things") if tail == "for" else ()
            often = listed * 3 // 2 if composed else listed
            found += [TaskGroup(verbs, (*body[1:], *composed), tails, listed)] * often
    return tuple(found)


def _composed(first: str, second: str) -> tuple[str, ...]:
    """Every line of one section in front of every line of another."""
    return tuple(f"{a} {b}" for a in lines(_FILE, first) for b in lines(_FILE, second))


def _words(title: str) -> tuple[str, ...]:
    return tuple(word for line in lines(_FILE, title) for word in line.split())


CITIES = terms(_FILE, "cities")
CITIES_HELDOUT = terms(_FILE, "cities heldout")
TOWN_LEADS = _words("town leads")
TOWN_BASES = _words("town bases")
TOWN_TAILS = _words("town tails")
CHAINS = terms(_FILE, "chains")
STOP_TYPES = terms(_FILE, "stop types")
PURPOSES = terms(_FILE, "purposes")
BREAK_PURPOSES = terms(_FILE, "break purposes")
TRIP_PURPOSES = terms(_FILE, "trip purposes")
PLACES = terms(_FILE, "places")
FACILITY_OWNERS = lines(_FILE, "facility owners")
FACILITY_LEADS = lines(_FILE, "facility leads")
FACILITY_TRADES = lines(_FILE, "facility trades")
FACILITY_KINDS = lines(_FILE, "facility kinds")
LANDMARKS = terms(_FILE, "landmarks")
HERE = terms(_FILE, "here")
AVOIDABLE = terms(_FILE, "avoidable")
PREFERENCES = terms(_FILE, "preferences")
BEST = terms(_FILE, "best")
REASONS = terms(_FILE, "reasons")
STOP_STATES = terms(_FILE, "stop states")
STOP_CAUSES = terms(_FILE, "stop causes")
MISHAPS = (
    *terms(_FILE, "mishaps"),
    *(Term(thing, (thing,)) for thing in _composed("mishap parts", "mishap kinds")),
)
WEATHER = terms(_FILE, "weather")
WEATHER_HELDOUT = terms(_FILE, "weather heldout")
CATEGORIES = terms(_FILE, "categories")
PAYEES = terms(_FILE, "payees")
ACTIONS_DONE = terms(_FILE, "actions done")
ACTIONS_BEING = terms(_FILE, "actions being")
INTERSTATES = _numbers("interstates")
INTERSTATES_HELDOUT = _numbers("interstates heldout")
US_ROUTES = _numbers("us routes")
US_ROUTES_HELDOUT = _numbers("us routes heldout")
MOMENTS = lines(_FILE, "moments")
POINTS = terms(_FILE, "points")
EVENTS = lines(_FILE, "events")
TASKS = _tasks()

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DAY_PARTS = ("morning", "afternoon", "evening", "night")
