"""What a cab and a speech recogniser do to a sentence: fillers, repeats, corrections, homophones, lost words.

Noise changes words around values and never the label: a value is interrupted at most by a filler, and a
correction puts another value of the same kind in front of the right one, with a cue in between. How much of
it there is, is a `NoiseLevel`; the corpus is made with `CORPUS`, whose shares are part of its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from bithaul.corpus.truckmate import numbers
from bithaul.corpus.truckmate.data import lines, terms
from bithaul.corpus.truckmate.dice import Dice
from bithaul.corpus.truckmate.grammar import Part, as_part
from bithaul.corpus.truckmate.values import KINDS

_FILE = "noise.words"


def _table(title: str) -> dict[str, tuple[str, ...]]:
    return {term.value: term.forms for term in terms(_FILE, title)}


def _phrases(title: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line.split()) for line in lines(_FILE, title))


FILLERS = _phrases("fillers")
CORRECTIONS = _phrases("corrections")
OPENINGS = _phrases("openings")
CLOSINGS = _phrases("closings")
HOMOPHONES = _table("homophones")  # what a recogniser hears instead; never next to a number
LOST = frozenset(word.strip() for line in lines(_FILE, "lost") for word in line.split(","))
SHORT = {tuple(pair.split()): forms[0] for pair, forms in _table("short").items()}
SLURRED = {tuple(pair.split()): forms[0] for pair, forms in _table("slurred").items()}
NUMBERS = frozenset((*numbers.ONES, *numbers.TEENS, *numbers.TENS))
CORRECTED_KINDS = frozenset(("city", "place", "chain", "interstate", "load", "amount", "facility", "near"))


@dataclass(frozen=True)
class NoiseLevel:
    """Shares of sentences that get each kind of noise, 0 to 1, and how much of it one gets at most."""

    misheard: float
    most_misheard: int
    lost: float
    most_lost: int
    opened: float
    closed: float
    repeated: float
    filled: float
    most_fillers: int
    split_values: float  # of the fillers that fall on a value of several words: put inside it


CORPUS = NoiseLevel(
    misheard=0.45,
    most_misheard=2,
    lost=0.2,
    most_lost=1,
    opened=0.3,
    closed=0.18,
    repeated=0.06,
    filled=0.25,
    most_fillers=2,
    split_values=0.3,
)
# For measuring: values stay whole. Light is the dose of the corpus, heavy what a bad microphone leaves.
LEVELS: Mapping[str, NoiseLevel] = MappingProxyType(
    {
        "light": replace(CORPUS, split_values=0.0),
        "heavy": NoiseLevel(
            misheard=0.9,
            most_misheard=4,
            lost=0.6,
            most_lost=2,
            opened=0.5,
            closed=0.3,
            repeated=0.2,
            filled=0.6,
            most_fillers=3,
            split_values=0.0,
        ),
    }
)


def add_noise(parts: list[Part], dice: Dice, level: NoiseLevel = CORPUS) -> list[Part]:
    """Noise of every kind; at the level of the corpus four sentences in ten have none from the recogniser."""
    parts = [piece for part in parts for piece in _correct(part, dice)]
    parts = _contract(parts, dice)
    if dice.chance(level.misheard):
        parts = _mishear(parts, dice, level.most_misheard)
    if dice.chance(level.lost):
        for _ in range(level.most_lost):
            parts = _lose(parts, dice)
    if dice.chance(level.opened):
        parts = [Part(dice.pick(OPENINGS)), *parts]
    if dice.chance(level.closed):
        parts = [*parts, Part(dice.pick(CLOSINGS))]
    if dice.chance(level.repeated):
        parts = _repeat(parts, dice)
    if dice.chance(level.filled):
        parts = _fill(parts, dice, level)
    return parts


def punctuate(parts: list[Part], dice: Dice) -> str:
    """The final text; one sentence in twelve comes typed, with a mark at its end."""
    text = " ".join(word for part in parts for word in part.words)
    return text + dice.pick((".", "?", "!")) if dice.chance(0.08) else text


def _correct(part: Part, dice: Dice) -> list[Part]:
    if part.slot is None or part.kind not in CORRECTED_KINDS or not dice.chance(0.04):
        return [part]
    wrong = as_part(part.slot, part.kind, KINDS[part.kind](dice, False))
    cue = Part(dice.pick(CORRECTIONS))
    return [replace(wrong, slot=None), cue, part]


def _contract(parts: list[Part], dice: Dice) -> list[Part]:
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        if last is None or not _free(part):
            out.append(part)
            continue
        pair = (last.words[-1], part.words[0])
        if _free(last) and pair in SHORT and dice.chance(0.6):
            out[-1] = Part((SHORT[pair] if dice.chance(0.8) else SHORT[pair].replace("'", ""),))
        elif _free(last) and pair in SLURRED and dice.chance(0.25):
            out[-1] = Part((SLURRED[pair],))
        elif part.words == ("is",) and _takes_ending(last) and dice.chance(0.3):
            out[-1] = replace(last, words=(*last.words[:-1], f"{last.words[-1]}'s"))
        else:
            out.append(part)
    return out


def _takes_ending(part: Part) -> bool:
    """A value that "is" may melt into: "traffic's backed up"."""
    return part.slot is not None and not part.numeric and not part.words[-1].endswith("s")


def _mishear(parts: list[Part], dice: Dice, most: int) -> list[Part]:
    out = list(parts)
    spots = [
        i for i, part in enumerate(parts) if _free(part) and part.words[0] in HOMOPHONES and _safe(parts, i)
    ]
    for _ in range(min(len(spots), dice.between(1, most))):
        spot = dice.pick(spots)
        heard = dice.pick(HOMOPHONES[parts[spot].words[0]])
        if heard in NUMBERS and spot and parts[spot - 1].words[-1] == "i":
            continue  # "i two" would be a road
        out[spot] = Part(tuple(heard.split()))
    return out


def _safe(parts: list[Part], i: int) -> bool:
    """Not next to a number, where "to" and "for" would turn into part of it."""
    return not any(part.numeric for part in parts[max(i - 1, 0) : i + 2])


def _lose(parts: list[Part], dice: Dice) -> list[Part]:
    spots = [
        i for i, part in enumerate(parts) if _free(part) and part.words[0] in LOST and not _letter(parts, i)
    ]
    if not spots or len(parts) < 4:
        return parts
    spot = dice.pick(spots)
    return parts[:spot] + parts[spot + 1 :]


def _letter(parts: list[Part], i: int) -> bool:
    """Part of letters said one by one, such as "e t a"."""
    return len(parts[i].words[0]) == 1 and i > 0 and len(parts[i - 1].words[-1]) == 1


def _repeat(parts: list[Part], dice: Dice) -> list[Part]:
    spots = [i for i, part in enumerate(parts) if _free(part) and _safe(parts, i) and len(part.words[0]) > 1]
    if not spots:
        return parts
    spot = dice.pick(spots)
    return parts[: spot + 1] + parts[spot:]


def _fill(parts: list[Part], dice: Dice, level: NoiseLevel) -> list[Part]:
    out = list(parts)
    for _ in range(dice.between(1, level.most_fillers)):
        filler = dice.pick(FILLERS)
        spot = dice.between(0, len(out))
        inside = out[spot] if spot < len(out) else None
        splits = inside is not None and inside.slot and not inside.numeric and len(inside.words) > 1
        if inside is not None and splits and len(filler) == 1 and dice.chance(level.split_values):
            cut = dice.between(1, len(inside.words) - 1)
            out[spot] = replace(inside, words=inside.words[:cut] + filler + inside.words[cut:])
        else:
            out.insert(spot, Part(filler))
    return out


def _free(part: Part) -> bool:
    return part.slot is None and not part.kind and len(part.words) == 1
