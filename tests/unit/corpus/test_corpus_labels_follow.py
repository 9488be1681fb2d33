"""Labels follow from the words: every label of a full corpus is derived again from its text.

The reader below shares the word lists with the generator (what is a city, how is a chain said) and nothing
else: it finds values in the text, takes back what was corrected, and names slots by the words in front. It
would catch slots drawn apart from the text, a value changed by noise, and a slot under the wrong name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from bithaul.corpus.example import Example, SlotValue
from bithaul.corpus.truckmate import lexicon as lex
from bithaul.corpus.truckmate.generator import Traced

FILLERS = ("you know", "uh", "um", "er", "ah", "hmm", "like", "well", "uhh", "umm")
CUES = ("no wait", "wait no", "i mean", "scratch that", "sorry", "correction", "no make that", "actually no")
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SMALL = {word: n for n, word in enumerate(ONES + TEENS)} | {word: 20 + 10 * n for n, word in enumerate(TENS)}

# Which kinds of value an intent can have, and the slot of each; `city` may become via, near or stops.
PLACES = {"facility": "destination"}
TRIP = {"city": "destination", "facility": "destination", "road": "via"}
SLOTS: dict[str, dict[str, str]] = {
    "start_trip": TRIP | {"trip_purpose": "purpose", "load": "load_id", "when": "when"},
    "stop_trip": {"stop_reason": "reason", "when": "when", "load": "load_id"},
    "navigate": PLACES | {"city": "city", "chain": "chain", "stop": "stop_type", "road": "via",
                          "when": "when", "weather": "weather", "preference": "preference",
                          "landmark": "near", "interstate": "near_interstate"},
    "find_poi": {"stop": "stop_type", "chain": "chain", "landmark": "near", "here": "near", "city": "city",
                 "interstate": "near_interstate", "best": "preference", "purpose": "purpose", "when": "when"},
    "route_preference": {"avoid": "preference", "preference": "preference", "weather": "weather",
                         "road": "via", "city": "city"},
    "hos_status": {},
    "hos_break_check": {"when": "when"},
    "hos_drive_remaining": {"city": "destination", "facility": "destination"},
    "add_todo": {"task": "task", "when": "when"},
    "add_expense": {"amount": "amount", "category": "category", "city": "city", "chain": "chain",
                    "when": "when"},
    "eta_query": TRIP | {"weather": "weather", "when": "when"},
    "trip_status": {"load": "load_id"},
    "next_stop_query": {"stop": "stop_type", "city": "city"},
    "reroute": TRIP | {"reason": "reason", "weather": "weather", "preference": "preference",
                       "interstate": "near_interstate"},
    "update_load": PLACES | {"load": "load_id", "action": "action", "when": "when", "city": "city"},
    "out_of_scope": {},
}  # fmt: skip

# Beginnings of words that make the intent what it is; noise never takes all of them away.
EVIDENCE = {
    "start_trip": "start|begin|open|kick|roll|new|knew|set up",
    "stop_trip": "stop|end|finish|done|close|cancel|over|shut|that (is )?(it|all)|that's|thats",
    "navigate": "take|get|go|navi|drive|head|direction|route|root|rout|bring|course|way|weigh|gps"
    "|change|roll|make|map",
    "find_poi": "find|fined|look|locate|search|show|get|need|knead|where|wear|there|their|pull|any|wh?ut|what"
    "|got|how|could|make|and|i mean|want|would",
    "route_preference": "avoid|a void|want|would|prefer|use|take|give|pick|choose|stay|keep|no|set|hate|skip"
    "|make|away|a way|only|change|route|root|rout|don't",
    "hos_status": "hours|ours|log|clock|hos|legal|violation|duty|seventy|week|cycle|e l d",
    "hos_break_check": "break|brake|thirty",
    "hos_drive_remaining": "driv|run|roll|eleven|fourteen|hours|ours|clock",
    "add_todo": "remind|re mind|list|to do|too do|two do|to dos|note|forget|remember|tell|task",
    "add_expense": "dollars|bucks|cents|[0-9]",
    "eta_query": "eta|e t a|arriv|a rive|when|long|far|will|can|many|much|time|late|reach",
    "trip_status": "trip|run|haul|hall|load|lode|stat|update|progress|schedule|track|course",
    "next_stop_query": "next|after|coming",
    "reroute": "re ?rou?o?t|way|weigh|route|root|rout|around|arround|detour|recalculate|shut|closed|backed",
    "update_load": "load|lode|l d|b o l|it",
}


@dataclass(frozen=True)
class Mention:
    start: int
    stop: int
    kind: str
    value: str


def _forms() -> dict[str, dict[tuple[str, ...], str]]:
    """Kind -> spoken words -> value."""
    lists = {
        "city": lex.CITIES + lex.CITIES_HELDOUT, "chain": lex.CHAINS, "stop": lex.STOP_TYPES,
        "purpose": lex.PURPOSES, "trip_purpose": lex.TRIP_PURPOSES, "facility": lex.PLACES,
        "landmark": lex.LANDMARKS, "here": lex.HERE, "avoid": lex.AVOIDABLE, "preference": lex.PREFERENCES,
        "best": lex.BEST, "reason": lex.REASONS, "stop_reason": lex.STOP_REASONS, "category": lex.CATEGORIES,
        "weather": lex.WEATHER + lex.WEATHER_HELDOUT, "action": lex.ACTIONS,
    }  # fmt: skip
    forms = {
        kind: {tuple(f.split()): t.value for t in terms for f in t.forms} for kind, terms in lists.items()
    }
    towns = [(a, b) for a in lex.TOWN_LEADS for b in lex.TOWN_BASES]
    towns += [(a, b) for a in lex.TOWN_BASES for b in lex.TOWN_TAILS]
    towns += [
        (a, b, c)
        for a in lex.TOWN_LEADS
        for b in lex.TOWN_BASES
        for c in lex.TOWN_TAILS
        if c not in lex.TOWN_BASES
    ]
    forms["city"] = {tuple(w.lower() for w in town): " ".join(town) for town in towns} | forms["city"]
    for owner in lex.FACILITY_OWNERS:
        for kind in lex.FACILITY_KINDS:
            forms["facility"][("the", *owner.split(), *kind.split())] = f"{owner} {kind}"
    days = [f"{day} {part}" for day in lex.WEEKDAYS for part in lex.DAY_PARTS] + list(lex.MOMENTS)
    forms["when"] = {tuple(day.split()): day for day in days}
    tasks = [f"{verb} {thing}" for verbs, things in lex.TASKS for verb in verbs for thing in things]
    forms["task"] = {tuple(task.split()): task for task in tasks}
    return forms


def _by_first_word() -> dict[str, list[tuple[str, list[str], str]]]:
    index: dict[str, list[tuple[str, list[str], str]]] = defaultdict(list)
    for kind, forms in _forms().items():
        for said, value in forms.items():
            index[said[0]].append((kind, list(said), value))
    return index


FORMS = _by_first_word()


def number(words: list[str], at: int) -> tuple[int, int] | None:
    """A number from 0 to 999 in words or digits: its value and where it ends."""
    if at < len(words) and re.fullmatch(r"\d{1,3}", words[at]):
        return int(words[at]), at + 1
    value = SMALL.get(words[at]) if at < len(words) else None
    if value is None:
        return None
    at += 1
    if value < 10 and words[at : at + 1] == ["hundred"]:
        rest = number_below_100(words, at + 1)
        return (value * 100 + rest[0], rest[1]) if rest else (value * 100, at + 1)
    return number_below_100(words, at - 1)


def number_below_100(words: list[str], at: int) -> tuple[int, int] | None:
    value = SMALL.get(words[at]) if at < len(words) else None
    if value is None:
        return None
    unit = SMALL.get(words[at + 1], 0) if value >= 20 and at + 1 < len(words) else 0
    return (value + unit, at + 2) if 0 < unit < 10 else (value, at + 1)


def road_number(words: list[str], at: int) -> tuple[int, int] | None:
    """Like `number`, and 101 "one oh one", 287 "two eighty seven"."""
    hundreds = SMALL.get(words[at]) if at < len(words) else None
    if hundreds is not None and 0 < hundreds < 10 and at + 1 < len(words):
        if words[at + 1] == "oh":
            return hundreds * 100 + SMALL[words[at + 2]], at + 3
        rest = number_below_100(words, at + 1)
        if rest and rest[0] >= 10:
            return hundreds * 100 + rest[0], rest[1]
    return number(words, at)


def roads(words: list[str], at: int) -> Iterator[Mention]:
    glued = re.fullmatch(r"i-(\d+)", words[at])
    if glued:
        yield Mention(at, at + 1, "interstate", f"I-{glued.group(1)}")
    leads = {"I": ("i", "interstate", "inter state"), "US": ("us", "highway", "u s", "us route", "high way")}
    for prefix, said in leads.items():
        for lead in said:
            end = at + len(lead.split())
            found = road_number(words, end) if words[at:end] == lead.split() else None
            if found:
                yield Mention(at, found[1], "interstate" if prefix == "I" else "road", f"{prefix}-{found[0]}")


def loads(words: list[str], at: int) -> Iterator[Mention]:
    if re.fullmatch(r"\d{4,6}", words[at]):
        yield Mention(at, at + 1, "load", words[at])
    end = at
    while end < len(words) and words[end] in ONES:
        end += 1
    if 4 <= end - at <= 6:
        yield Mention(at, end, "load", "".join(str(ONES.index(word)) for word in words[at:end]))


def amounts(words: list[str], at: int) -> Iterator[Mention]:
    if re.fullmatch(r"\$\d+(\.\d\d)?", words[at]):
        yield Mention(at, at + 1, "amount", words[at][1:])
    exact = re.fullmatch(r"\d+\.\d\d", words[at])
    if exact and words[at + 1 : at + 2] in (["dollars"], ["bucks"]):
        yield Mention(at, at + 2, "amount", words[at])
    whole = number(words, at)
    if whole and words[whole[1] : whole[1] + 1] in (["dollars"], ["bucks"]):
        yield Mention(at, whole[1] + 1, "amount", str(whole[0]))
        cents = number(words, whole[1] + 2) if words[whole[1] + 1 : whole[1] + 2] == ["and"] else None
        if cents and words[cents[1] : cents[1] + 1] == ["cents"]:
            yield Mention(at, cents[1] + 1, "amount", f"{whole[0]}.{cents[0]:02d}")


def times(words: list[str], at: int) -> Iterator[Mention]:
    if words[at] == "in":
        span = number(words, at + 1)
        if span and words[span[1] : span[1] + 1] in (["hours"], ["minutes"]):
            yield Mention(at, span[1] + 1, "when", f"in {span[0]} {words[span[1]]}")
    clock = re.fullmatch(r"(\d{1,2})(:\d\d)?", words[at])
    hour = (words[at], at + 1) if clock else None
    if not clock and words[at] in SMALL and SMALL[words[at]] <= 12:
        hour = (str(SMALL[words[at]]), at + 1)
        minutes = number_below_100(words, at + 1)
        if minutes and minutes[0] in (15, 30, 45):
            hour = (f"{hour[0]}:{minutes[0]}", minutes[1])
    if hour:
        for half, said in (("am", ["am"]), ("pm", ["pm"]), ("am", ["a", "m"]), ("pm", ["p", "m"])):
            if words[hour[1] : hour[1] + len(said)] == said:
                yield Mention(at, hour[1] + len(said), "when", f"{hour[0]} {half}")


def lists(words: list[str], at: int) -> Iterator[Mention]:
    for kind, said, value in FORMS.get(words[at], ()):
        if words[at : at + len(said)] == said:
            yield Mention(at, at + len(said), kind, value)


READERS: tuple[Callable[[list[str], int], Iterator[Mention]], ...] = (roads, loads, amounts, times, lists)


def mentions(words: list[str], kinds: dict[str, str]) -> list[Mention]:
    """The longest mention at each place, left to right, of the kinds an intent can have."""
    found: list[Mention] = []
    at = 0
    while at < len(words):
        here = [
            m
            for reader in READERS
            for m in reader(words, at)
            if m.kind in kinds or (m.kind == "interstate" and "road" in kinds)
        ]
        best = max(here, key=lambda m: m.stop, default=None)
        if best:
            found.append(best)
        at = best.stop if best else at + 1
    return found


def before(words: list[str], mention: Mention, previous: Mention | None) -> list[str]:
    """The words in front of a mention, as far as the one before it, without repeats."""
    between = words[previous.stop if previous else 0 : mention.start]
    return [word for i, word in enumerate(between) if i == 0 or word != between[i - 1]]


def slot_of(intent: str, mention: Mention, front: list[str], previous: str | None) -> str:
    """The slot of a mention by its kind and the words in front of it."""
    last = front[-1] if front else ""
    if mention.kind in ("interstate", "road"):
        is_via = last in ("via", "through", "threw", "thru", "of", "way", "weigh")
        return "via" if is_via or intent not in ("find_poi", "reroute", "navigate") else "near_interstate"
    if mention.kind == "city":
        if last in ("via", "through", "threw", "thru", "of", "way", "weigh"):
            return "via"
        close = last in ("to", "too", "two") and front[-2:-1] == ["close"]
        if close or last in ("near", "around", "arround", "by", "buy", "bye"):
            return "near"
        if last == "in" and {"stop", "stops", "stopping"} & set(front[-3:]):
            return "stops"
        if previous == "stops" and set(front) <= {"and", "then"}:
            return "stops"
        if intent == "navigate" and previous == "city" and front and set(front) <= {"then"}:
            return "stops"
        if last == "in" and intent == "reroute":
            return "city"
    return SLOTS[intent][mention.kind]


def said_words(text: str) -> list[str]:
    """The words without fillers, what radio calls count, and the mark at the end."""
    plain = " " + re.sub(r"[.?!]$", "", text) + " "
    for call in ("breaker one nine", "ten four"):
        plain = plain.replace(f" {call} ", " ")
    for filler in FILLERS:
        while f" {filler} " in plain:
            plain = plain.replace(f" {filler} ", " ")
    return plain.split()


def derive(text: str, intent: str) -> list[tuple[str, SlotValue]]:
    """The slots of a request from its words."""
    words = said_words(text)
    found = mentions(words, SLOTS[intent])
    slots: list[tuple[str, str]] = []
    previous: Mention | None = None
    for mention in found:
        front = before(words, mention, previous)
        last = slots[-1][0] if slots else None
        corrected = any(f" {cue} " in f" {' '.join(front)} " for cue in CUES) and "over" not in front
        if corrected and previous and len(front) <= 3:
            slots[-1] = (slots[-1][0], mention.value)
        else:
            name = slot_of(intent, mention, front, last)
            if name != "stops":
                slots = [slot for slot in slots if slot[0] != name]
            slots.append((name, mention.value))
        previous = mention
    merged: dict[str, list[str]] = defaultdict(list)
    for name, value in slots:
        merged[name].append(value)
    return [(name, v[0] if len(v) == 1 else tuple(v)) for name, v in merged.items()]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_label_can_be_derived_from_its_text(split: str, request: pytest.FixtureRequest) -> None:
    traced: list[Traced] = request.getfixturevalue(split)
    wrong = [t.example for t in traced if derive(t.example.text, t.example.intent) != list(t.example.slots)]
    shown = "\n".join(f"{e.line()}\n    read as {derive(e.text, e.intent)}" for e in wrong[:20])
    assert not wrong, f"{len(wrong)} labels do not follow from their words:\n{shown}"


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_intent_has_its_evidence_in_the_text(split: str, request: pytest.FixtureRequest) -> None:
    """Catches requests filed under the wrong intent, or whose telling word was lost to noise."""
    traced: list[Traced] = request.getfixturevalue(split)
    patterns = {intent: re.compile(rf"(?:^|\s|\$)(?:{words})") for intent, words in EVIDENCE.items()}
    wrong = [
        t.example.line()
        for t in traced
        if t.example.intent in patterns
        and not patterns[t.example.intent].search(" ".join(said_words(t.example.text)))
    ]
    assert not wrong, "\n".join(wrong[:20])


def test_no_text_has_two_labels(train: list[Traced], heldout: list[Traced]) -> None:
    labels: dict[str, set[str]] = defaultdict(set)
    for found in (*train, *heldout):
        labels[found.example.text].add(found.example.label_json())
    double = {text: found for text, found in labels.items() if len(found) > 1}
    assert not double, list(double.items())[:10]


def test_no_phrasing_has_two_intents(train: list[Traced], heldout: list[Traced]) -> None:
    """A phrasing is a text with its values taken out: it must decide the intent by itself."""
    intents: dict[str, set[str]] = defaultdict(set)
    for found in (*train, *heldout):
        intents[phrasing(found.example)].add(found.example.intent)
    double = {text: found for text, found in intents.items() if len(found) > 1}
    assert not double, list(double.items())[:10]


def phrasing(example: Example) -> str:
    words = said_words(example.text)
    spans = mentions(words, SLOTS[example.intent])
    for mention in reversed(spans):
        words[mention.start : mention.stop] = [f"<{mention.kind}>"]
    return " ".join(words)


@pytest.mark.parametrize(
    ("text", "intent", "slots"),
    [
        ("take me to the flying j in dallas", "navigate", [("chain", "Flying J"), ("city", "Dallas")]),
        ("drive to dallas no wait memphis", "navigate", [("city", "Memphis")]),
        ("start a trip to waco by way of i forty", "start_trip", [("destination", "Waco"), ("via", "I-40")]),
        ("log forty five dollars and five cents", "add_expense", [("amount", "45.05")]),
    ],
)  # fmt: skip
def test_the_reader_itself(text: str, intent: str, slots: list[tuple[str, SlotValue]]) -> None:
    """Guards the guard: a reader that finds nothing would agree with empty labels."""
    assert derive(text, intent) == slots
