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
CUES += ("hang on", "no hold on", "make that", "or rather", "i meant")
CUE_ENDS = {cue.split()[-1] for cue in CUES}
SPANS = ["in an hour", "in half an hour", "in a couple of hours", "in a few minutes", "in a few hours"]
SPANS += ["in a week"]
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
AREA = {"landmark": "near", "marker": "near", "interstate": "near_interstate"}
SLOTS: dict[str, dict[str, str]] = {
    "start_trip": TRIP | {"trip_purpose": "purpose", "load": "load_id", "when": "when"},
    "stop_trip": {"stop_state": "reason", "stop_cause": "reason", "when": "when", "load": "load_id"},
    "navigate": PLACES | AREA | {"city": "city", "chain": "chain", "stop": "stop_type", "road": "via",
                                 "when": "when", "weather": "weather", "preference": "preference",
                                 "best": "preference", "avoid": "preference"},
    "find_poi": AREA | {"stop": "stop_type", "chain": "chain", "here": "near", "city": "city",
                        "best": "preference", "purpose": "purpose", "when": "when"},
    "route_preference": {"avoid": "preference", "preference": "preference", "weather": "weather",
                         "road": "via", "city": "city"},
    "hos_status": {},
    "hos_break_check": {"when": "when"},
    "hos_drive_remaining": {"city": "destination", "facility": "destination"},
    "add_todo": {"task": "task", "when": "when", "event": "when"},
    "add_expense": {"amount": "amount", "category": "category", "city": "city", "chain": "chain",
                    "when": "when"},
    "eta_query": TRIP | {"weather": "weather", "when": "when"},
    "trip_status": {"load": "load_id"},
    "next_stop_query": {"stop": "stop_type", "city": "city"},
    "reroute": TRIP | AREA | {"reason": "reason", "weather": "weather", "preference": "preference"},
    "update_load": PLACES | {"load": "load_id", "action": "action", "when": "when", "city": "city"},
    "out_of_scope": {},
}  # fmt: skip

# Beginnings of words that make the intent what it is; noise never takes all of them away.
EVIDENCE = {
    "start_trip": "start|begin|open|kick|roll|new|knew|set|next|leaving|depart|heading|head|pulling|taking"
    "|hit|wheels|let's|time|fire|crank|launch|activate|get|log|create|make|add|enter|punch|put|sign|clock"
    "|mark|show|we are|we r|we're|were|we moving|shoving|and we|another|an other|off t|on the w|way|bound",
    "stop_trip": "stop|off|consider|end|finish|done|close|cancel|over|shut|that (i[sz] )?(it|all)|that's"
    "|thats|kill|scrub|quit|abort|terminate|wrap|pack|scratch|wind|call|pause|complete|through|threw|thru"
    "|dead|bust|history|mark|drop|no more|enough|can not|cannot|can't|never|forget|delete|undo|turn off"
    "|cant|stick|throw|power|knock|give up|that does|that will|that'll",
    "navigate": "take|get|go|navi|drive|head|direction|route|root|rout|bring|course|way|weigh|gps|change"
    "|roll|make|map|road|rode|exit|guide|steer|point|send|run|carry|lead|direct|nav|lost|where|wear|turn"
    "|step|walk|swing|program|punch|plug|enter|type|key|dial|show|set|tell|talk|bear|highway|high way"
    "|what is|what's|whats|what the|wut|aim|shoot|cut|be home|b home|bee home|gotta get|turns|dispatch"
    "|what i",
    "hos_status": "hours|ours|log|clock|hos|legal|violation|duty|seventy|70|sixty|week|cycle|e l d|recap"
    "|reset|restart|compliant|on hours|line|status|stat us|stand|off duty|pass|thirty four|34|driv|run"
    "|work|long|up on|show|on the clock|sleeper|have me",
    "hos_break_check": "break|brake|thirty|30|eight|8|sit|half hour",
    "hos_drive_remaining": "driv|run|roll|eleven|11|fourteen|14|hours|ours|clock|wheel|time|timing|legal"
    "|left|legs|reach|have i got|another hour|one more hour",
    "eta_query": "eta|e t a|arriv|a rive|when|long|far|will|can|many|much|time|late|early|reach|close|near"
    "|there|their|due|do you think|chance|doable|possible|realistic|in reach|mile|distance|what|wut|hour"
    "|quick|soon|the .* slow|make|gonna|going|does|hours|ours|slow|fast|off|minutes|anywhere|almost"
    "|you think|u think|do (i |eye |we )?(get|hit|pull|show)",
    "trip_status": "trip|run|haul|hall|load|lode|stat|update|progress|schedule|track|course|how|ahead"
    "|behind|running|on time|ok|halfway|everything|things|good shape|pace",
    "next_stop_query": "next|after|coming|stop|drop|up|follow|deliver|between|before|where|wear|pickup"
    "|on deck|unload|load|lode|back in|which|who|what",
    "reroute": "re ?rou?o?t|way|weigh|route|root|rout|around|arround|detour|recalculate|shut|closed|backed"
    "|another|an other|different|bypass|skirt|off|past|instead|on ?to|out of|clear|skip|dodge|beat|miss"
    "|avoid|a void|redo|recompute|replan|destination|track|how do i get back|what now|now what|wut now"
    "|now wut|wrong|plan|dispatch|find|drive|refuse|through|threw|thru|in to|into|rework|switch|other|back"
    "|out|update|change|better|away|a way|think|work|draw|cook|new|knew|trust|something else",
}  # fmt: skip
# Intents that cannot be without a value: one of these kinds is said.
ESSENCE = {
    "find_poi": {"stop", "chain", "purpose"},
    "route_preference": {"avoid", "preference", "weather", "road", "interstate", "city"},
    "add_todo": {"task"},
    "add_expense": {"amount"},
    "update_load": {"action"},
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
        "purpose": lex.PURPOSES + lex.BREAK_PURPOSES, "trip_purpose": lex.TRIP_PURPOSES,
        "facility": lex.PLACES,
        "landmark": lex.LANDMARKS, "here": lex.HERE, "avoid": lex.AVOIDABLE, "preference": lex.PREFERENCES,
        "best": lex.BEST, "reason": lex.REASONS, "stop_state": lex.STOP_STATES,
        "stop_cause": lex.STOP_CAUSES + lex.MISHAPS, "category": lex.CATEGORIES + lex.PAYEES,
        "weather": lex.WEATHER + lex.WEATHER_HELDOUT, "action": lex.ACTIONS_DONE + lex.ACTIONS_BEING,
    }  # fmt: skip
    forms = {
        kind: {tuple(f.split()): t.value for t in terms for f in t.forms} for kind, terms in lists.items()
    }
    towns: list[tuple[str, ...]] = [(a, b) for a in lex.TOWN_LEADS for b in lex.TOWN_BASES]
    towns += [(a, b) for a in lex.TOWN_BASES for b in lex.TOWN_TAILS]
    towns += [
        (a, b, c)
        for a in lex.TOWN_LEADS
        for b in lex.TOWN_BASES
        for c in lex.TOWN_TAILS
        if c not in lex.TOWN_BASES
    ]
    forms["city"] = {tuple(w.lower() for w in town): " ".join(town) for town in towns} | forms["city"]
    owners = [*lex.FACILITY_OWNERS]
    owners += [f"{lead} {trade}" for lead in lex.FACILITY_LEADS for trade in lex.FACILITY_TRADES]
    for place in (f"{owner} {kind}" for owner in owners for kind in lex.FACILITY_KINDS):
        forms["facility"][tuple(place.split())] = forms["facility"][("the", *place.split())] = place
    for item in lex.CATEGORIES:
        forms["category"][tuple(item.value.split())] = item.value
        forms["category"][("the", *item.value.split())] = item.value
    days = [f"{day} {part}" for day in (*lex.WEEKDAYS, "tomorrow") for part in lex.DAY_PARTS]
    days += [f"{lead}{day}" for day in lex.WEEKDAYS for lead in ("", "next ", "this ")]
    days += [*lex.MOMENTS, *SPANS, "morning", "afternoon", "evening"]
    forms["when"] = {tuple(day.split()): day for day in days}
    forms["when"] |= {tuple(form.split()): point.value for point in lex.POINTS for form in point.forms}
    forms["event"] = {tuple(event.split()): event for event in lex.EVENTS}
    tasks = [
        f"{verb} {thing} {tail}".strip()
        for verbs, things, tails, _ in set(lex.TASKS)
        for verb in verbs
        for thing in things
        for tail in (*tails, "")
    ]
    forms["task"] = {tuple(task.split()): task for task in tasks}
    return forms


def _by_words() -> dict[tuple[str, ...], list[tuple[str, str]]]:
    index: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for kind, forms in _forms().items():
        for said, value in forms.items():
            index[said].append((kind, value))
    return dict(index)


FORMS = _by_words()
NAMES_WITH_ENDING = {word for form in FORMS for word in form if word.endswith("'s")} | {"today's"}
# Who says or wants something is no place to go to.
SPEAKS = {"wants", "needs", "keeps"}
LENGTHS: dict[str, set[int]] = defaultdict(set)
for form in FORMS:
    LENGTHS[form[0]].add(len(form))


def number(words: list[str], at: int) -> tuple[int, int] | None:
    """A number from 0 to 9,999 in words or digits: its value and where it ends."""
    if at < len(words) and re.fullmatch(r"\d{1,4}", words[at]):
        return int(words[at]), at + 1
    found = number_below_100(words, at)
    if found is None:
        return None
    value, at = found
    size = {"hundred": 100, "thousand": 1000}.get(words[at]) if at < len(words) else None
    if size is None:
        return value, at
    rest = number_below_100(words, at + 1)
    return (value * size + rest[0], rest[1]) if rest else (value * size, at + 1)


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
    if re.fullmatch(r"(?:[bchkrtwxz]|tx|kx|bl|dr-|lt-|x-)?\d{3,8}", words[at]):
        yield Mention(at, at + 1, "load", words[at])
    if len(words[at]) == 1 and words[at] in "bchkrtwxz":
        for mention in loads(words, at + 1) if at + 1 < len(words) else ():
            if mention.value.isdigit():
                yield Mention(at, mention.stop, "load", words[at] + mention.value)
    end = at
    while end < len(words) and (words[end] in ONES or re.fullmatch(r"\d", words[end])):
        end += 1
    if 3 <= end - at <= 8:
        digits = [word if word.isdigit() else str(ONES.index(word)) for word in words[at:end]]
        yield Mention(at, end, "load", "".join(digits))
    yield from pairs(words, at)


def pairs(words: list[str], at: int) -> Iterator[Mention]:
    """4821 as "forty eight twenty one"."""
    digits, end = "", at
    while end < len(words):
        pair = number_below_100(words, end)
        if words[end] == "oh" and digits and end + 1 < len(words) and words[end + 1] in ONES:
            digits, end = f"{digits}0{ONES.index(words[end + 1])}", end + 2
        elif pair and pair[0] >= 10:
            digits, end = f"{digits}{pair[0]}", pair[1]
        else:
            break
    if len(digits) in (4, 6):
        yield Mention(at, end, "load", digits)


def amounts(words: list[str], at: int) -> Iterator[Mention]:
    if re.fullmatch(r"\$\d+(\.\d\d)?", words[at]):
        yield Mention(at, at + 1, "amount", words[at][1:])
    exact = re.fullmatch(r"\d+\.\d\d", words[at])
    if exact and words[at + 1 : at + 2] in (["dollars"], ["bucks"]):
        yield Mention(at, at + 2, "amount", words[at])
    hundred = words[at : at + 2] == ["a", "hundred"]
    whole = number(["one", *words[at + 1 :]], 0) if hundred else number(words, at)
    if whole is None:
        return
    value, end = whole[0], whole[1] + at if hundred else whole[1]
    if words[end : end + 1] in (["dollars"], ["bucks"], ["dollar"], ["buck"]):
        yield Mention(at, end + 1, "amount", str(value))
        cents = number(words, end + 2) if words[end + 1 : end + 2] == ["and"] else None
        if cents and words[cents[1] : cents[1] + 1] == ["cents"]:
            yield Mention(at, cents[1] + 1, "amount", f"{value}.{cents[0]:02d}")
    elif value >= 10:
        yield Mention(at, end, "amount", str(value))
        cents = number(words, end) if value < 100 else None
        if cents and 10 <= cents[0] < 100:
            yield Mention(at, cents[1], "amount", f"{value}.{cents[0]}")


def times(words: list[str], at: int) -> Iterator[Mention]:
    ahead = words[at] == "in"
    span = number(words, at + 1 if ahead else at)
    unit = words[span[1]] if span and span[1] < len(words) else ""
    if span and unit in ("hours", "minutes", "days"):
        if ahead:
            yield Mention(at, span[1] + 1, "when", f"in {span[0]} {unit}")
        elif words[span[1] + 1 : span[1] + 3] == ["from", "now"]:
            yield Mention(at, span[1] + 3, "when", f"{span[0]} {unit} from now")
    if words[at] in ("tomorrow", *lex.WEEKDAYS) and words[at + 1 : at + 2] == ["at"]:
        time = clock(words, at + 2)
        if time:
            yield Mention(at, time[1], "when", f"{words[at]} at {time[0]}")
    time = clock(words, at)
    if time:
        yield Mention(at, time[1], "when", time[0])


HOURS = {str(hour) for hour in range(1, 13)}


def clock(words: list[str], at: int) -> tuple[str, int] | None:
    """A clock time and where it ends: "6 am", "six thirty p m", "6am", "half past 6", "6" after "at"."""
    if at >= len(words):
        return None
    glued = re.fullmatch(r"(\d{1,2}(?::\d\d)?)(am|pm)", words[at])
    if glued:
        return f"{glued.group(1)} {glued.group(2)}", at + 1
    if words[at] in ("half", "quarter") and words[at + 1 : at + 2] in (["past"], ["to"]):
        hour = number(words, at + 2)
        return (f"{words[at]} {words[at + 1]} {hour[0]}", hour[1]) if hour else None
    if re.fullmatch(r"\d{1,2}(:\d\d)?", words[at]):
        said, end = words[at], at + 1
    elif words[at] in SMALL and SMALL[words[at]] <= 12:
        said, end = str(SMALL[words[at]]), at + 1
        minutes = number_below_100(words, end)
        if minutes and minutes[0] in (15, 30, 45):
            said, end = f"{said}:{minutes[0]}", minutes[1]
    else:
        return None
    for half, spoken in (("am", ["am"]), ("pm", ["pm"]), ("am", ["a", "m"]), ("pm", ["p", "m"])):
        if words[end : end + len(spoken)] == spoken:
            return f"{said} {half}", end + len(spoken)
    if words[end : end + 1] == ["o'clock"]:
        return f"{said} o'clock", end + 1
    plain = at > 0 and words[at - 1] in ("at", "by", "before", "since") and said in HOURS
    return (said, end) if plain else None


def markers(words: list[str], at: int) -> Iterator[Mention]:
    for sign in (["exit"], ["mile", "marker"]):
        end = at + len(sign)
        found = road_number(words, end) if words[at:end] == sign else None
        if found:
            yield Mention(at, found[1], "marker", f"{' '.join(sign)} {found[0]}")


def lists(words: list[str], at: int) -> Iterator[Mention]:
    for size in LENGTHS.get(words[at], ()):
        for kind, value in FORMS.get(tuple(words[at : at + size]), ()):
            yield Mention(at, at + size, kind, value)


READERS: tuple[Callable[[list[str], int], Iterator[Mention]], ...] = (
    roads,
    loads,
    amounts,
    times,
    markers,
    lists,
)


def mentions(words: list[str], kinds: dict[str, str]) -> list[Mention]:
    """The longest mention at each place, left to right, of the kinds an intent can have."""
    found: list[Mention] = []
    at = 0
    while at < len(words):
        here = [
            m
            for reader in READERS
            for m in reader(words, at)
            if (m.kind in kinds or (m.kind == "interstate" and "road" in kinds))
            and (m.kind != "landmark" or is_near(once(words[:at])) or words[at - 1] in CUE_ENDS)
            and (m.kind != "facility" or not SPEAKS & set(once(words[m.stop - 1 :])[1:2]))
        ]
        best = max(here, key=lambda m: m.stop, default=None)
        if best:
            found.append(best)
        at = best.stop if best else at + 1
    return found


def before(words: list[str], mention: Mention, previous: Mention | None) -> list[str]:
    """The words in front of a mention, as far as the one before it, without repeats."""
    return once(words[previous.stop if previous else 0 : mention.start])


def once(words: list[str]) -> list[str]:
    return [word for i, word in enumerate(words) if i == 0 or word != words[i - 1]]


VIA = ("via", "through", "threw", "thru", "way", "weigh")
NEAR = ("near", "around", "arround", "by", "buy", "bye", "outside", "side")


def is_via(front: list[str]) -> bool:
    return front[-1:] != [] and (
        front[-1] in VIA or (front[-1] == "of" and front[-2:-1] in (["way"], ["weigh"]))
    )


def is_near(front: list[str]) -> bool:
    two = front[-2:]
    to = len(two) == 2 and two[0] in ("close", "near") and two[1] in ("to", "too", "two")
    of = len(two) == 2 and two[0] in ("outside", "side") and two[1] == "of"
    return front[-1:] != [] and (front[-1] in NEAR or to or of or front[-3:] == ["not", "far", "from"])


def slot_of(intent: str, mention: Mention, front: list[str], previous: str | None) -> str:
    """The slot of a mention by its kind and the words in front of it."""
    last = front[-1] if front else ""
    if mention.kind in ("interstate", "road"):
        taken = is_via(front) or last in ("using", "taking", "take", "use", "onto")
        return "via" if taken or intent not in ("find_poi", "reroute", "navigate") else "near_interstate"
    if mention.kind == "city":
        if is_via(front):
            return "via"
        if is_near(front) and intent in ("navigate", "find_poi", "reroute"):
            return "near"
        stop = {"stop", "stops", "stopping"} & set(front[-3:])
        if last == "in" and stop and intent in ("navigate", "start_trip", "eta_query"):
            return "stops"
        if previous == "stops" and set(front) <= {"and", "then"}:
            return "stops"
        onwards = intent in ("navigate", "start_trip") and previous in ("city", "destination")
        if onwards and front and set(front) <= {"then"}:
            return "stops"
        if last in ("in", "bypass", "skirt") and intent == "reroute":
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
    return [word for said in plain.split() for word in apart(said)]


def apart(word: str) -> list[str]:
    """ "traffic's" is "traffic is", where 's is no part of a name."""
    ends = word.endswith("'s") and word not in NAMES_WITH_ENDING
    return [word.removesuffix("'s"), "is"] if ends else [word]


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
    wrong = []
    for example in (t.example for t in traced):
        words, intent = said_words(example.text), example.intent
        if intent in patterns and not patterns[intent].search(" ".join(words)):
            wrong.append(example.line())
        kinds = {mention.kind for mention in mentions(words, SLOTS[intent])}
        if intent in ESSENCE and not kinds & ESSENCE[intent]:
            wrong.append(example.line())
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
        ("fuel was a hundred twenty bucks", "add_expense", [("category", "fuel"), ("amount", "120")]),
        ("lunch sixteen fifty", "add_expense", [("category", "lunch"), ("amount", "16.50")]),
        ("load b four eight two one is late", "update_load", [("load_id", "b4821"), ("action", "late")]),
        ("load forty eight oh five is late", "update_load", [("load_id", "4805"), ("action", "late")]),
        ("remind me tomorrow at six", "add_todo", [("when", "tomorrow at 6")]),
        ("diesel not far from exit one oh one", "find_poi", [("stop_type", "diesel"), ("near", "exit 101")]),
        ("the road is blocked get me around", "reroute", []),
    ],
)  # fmt: skip
def test_the_reader_itself(text: str, intent: str, slots: list[tuple[str, SlotValue]]) -> None:
    """Guards the guard: a reader that finds nothing would agree with empty labels."""
    assert derive(text, intent) == slots
