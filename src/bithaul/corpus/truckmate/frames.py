"""The phrasings of the fifteen intents and of what is out of scope, read from `data/*.frames`.

One frame a line under `[intent]`, in the language of `grammar.py`; `[intent over]` are dialogues of several
turns with "over" between them. A frame that begins with `~` is held out: training never uses it.
`data/shared.rules` holds phrases that many frames use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from bithaul.corpus.truckmate.data import names, sections
from bithaul.corpus.truckmate.grammar import Phrase, parse

# How often each intent is asked for, per hundred requests or so.
WEIGHTS: Mapping[str, int] = MappingProxyType(
    {
        "start_trip": 8,
        "stop_trip": 5,
        "navigate": 10,
        "find_poi": 13,
        "route_preference": 6,
        "hos_status": 4,
        "hos_break_check": 4,
        "hos_drive_remaining": 5,
        "add_todo": 8,
        "add_expense": 8,
        "eta_query": 7,
        "trip_status": 4,
        "next_stop_query": 4,
        "reroute": 7,
        "update_load": 8,
        "out_of_scope": 10,
    }
)


@dataclass(frozen=True)
class Frame:
    """One phrasing: its text, which is unique in the grammar, its phrase, and where it may be used."""

    text: str
    phrase: Phrase
    intent: str
    dialogue: bool
    held: bool
    has_values: bool


@cache
def rules() -> Mapping[str, str]:
    """Shared phrases by name."""
    return MappingProxyType({title: body[0] for title, body in sections("shared.rules")})


@cache
def frames() -> tuple[Frame, ...]:
    """All frames of the grammar. ValueError when a data file is not well formed: a defect of this package."""
    found: list[Frame] = []
    for title, lines in (section for name in names(".frames") for section in sections(name)):
        intent, _, kind = title.partition(" ")
        if intent not in WEIGHTS or kind not in ("", "over"):
            raise ValueError(f"unknown section [{title}] in the grammar")
        for line in lines:
            text = line.removeprefix("~")
            phrase = parse(text, rules())
            found.append(Frame(text, phrase, intent, kind == "over", line != text, phrase.has_values()))
    return tuple(found)


@cache
def frames_of(intent: str, *, dialogue: bool, held: bool) -> tuple[Frame, ...]:
    """The frames of one intent for one purpose."""
    return tuple(f for f in frames() if (f.intent, f.dialogue, f.held) == (intent, dialogue, held))
