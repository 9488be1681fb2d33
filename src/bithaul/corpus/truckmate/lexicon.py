"""The words Truck Mate knows: cities, chains, stops, reasons and so on, from `data/lexicon.terms`.

Data only. Names that are held out are made of words which training values also contain, in another order, so
that a word-level model can say them; `tests/unit/corpus` proves both halves of that sentence.
"""

from __future__ import annotations

from bithaul.corpus.truckmate.data import lines, sections, terms

_FILE = "lexicon.terms"


def _numbers(title: str) -> tuple[int, ...]:
    return tuple(int(number) for line in lines(_FILE, title) for number in line.split())


def _tasks() -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Verbs and the objects that go with them."""
    found = [body for title, body in sections(_FILE) if title == "tasks"]
    return tuple((tuple(verb.strip() for verb in body[0].split(",")), body[1:]) for body in found)


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
TRIP_PURPOSES = terms(_FILE, "trip purposes")
PLACES = terms(_FILE, "places")
FACILITY_OWNERS = lines(_FILE, "facility owners")
FACILITY_KINDS = lines(_FILE, "facility kinds")
LANDMARKS = terms(_FILE, "landmarks")
HERE = terms(_FILE, "here")
AVOIDABLE = terms(_FILE, "avoidable")
PREFERENCES = terms(_FILE, "preferences")
BEST = terms(_FILE, "best")
REASONS = terms(_FILE, "reasons")
STOP_REASONS = terms(_FILE, "stop reasons")
WEATHER = terms(_FILE, "weather")
WEATHER_HELDOUT = terms(_FILE, "weather heldout")
CATEGORIES = terms(_FILE, "categories")
ACTIONS = terms(_FILE, "actions")
INTERSTATES = _numbers("interstates")
INTERSTATES_HELDOUT = _numbers("interstates heldout")
US_ROUTES = _numbers("us routes")
US_ROUTES_HELDOUT = _numbers("us routes heldout")
MOMENTS = lines(_FILE, "moments")
TASKS = _tasks()

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "tomorrow")
DAY_PARTS = ("morning", "afternoon", "evening", "night")
