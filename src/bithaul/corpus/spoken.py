"""Which numbers a request can mean: "two hundred forty" is 240 and never 244.

Reads English number words and digits, also mixed, and knows how people say ids, amounts, times and roads.
It gives digits without units or marks, and decides nothing: a request with two numbers has readings of both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SMALL = {word: n for n, word in enumerate((*_ONES, *_TEENS))}
_SMALL |= {word: 20 + 10 * n for n, word in enumerate(_TENS)}
_SIZES = {"hundred": 100, "thousand": 1000}
NUMBER_WORDS = frozenset((*_SMALL, *_SIZES))
_TOKEN = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+|[^\W\d]+|[^\w\s]")
NUMBER = re.compile(r"\d+")
LONGEST = 12  # digits of one number


def runs(value: str) -> list[str]:
    """The digits of a value, one string for each number in it: "6:30 pm" has 6 and 30."""
    return NUMBER.findall(value)


def shape(value: str) -> str:
    """A value with 0 for each of its numbers: "6:30 pm" and "12:15 pm" are both "0:0 pm"."""
    return NUMBER.sub("0", value)


Call = tuple[str, ...]
"""Number words that mean no number beside one: "ten four" behind "interstate 27"."""


class Reading(NamedTuple):
    """Words that may be one number: the place of the first, that behind the last, and whether no other number
    word stands right before or behind them, a call apart."""

    start: int
    end: int
    whole: bool


Readings = dict[str, list[Reading]]
"""Numbers as digits, each with the words it may be."""


def readings(text: str, calls: Collection[Call] = ()) -> Readings:
    """Every number that some words of a lower-case `text` that stand together can mean."""
    words = _TOKEN.findall(text)
    found: Readings = {}
    if any(word in NUMBER_WORDS or word[0].isdigit() for word in words):
        for start in range(len(words)):
            for digits, end in _from(words, start):
                before, behind = _numbers_before(words, start), _numbers_behind(words, end)
                whole = all(not beside or beside in calls for beside in (before, behind))
                found.setdefault(digits, []).append(Reading(start, end, whole))
    return found


def beside(value: str, text: str) -> set[Call]:
    """The number words right before and behind the last number of `value`, at each place that says it."""
    *before, last = runs(value)
    said, words = readings(text), _TOKEN.findall(text)
    at = _behind_numbers(before, said)
    places = [] if at is None else [found for found in said.get(last, ()) if found.start >= at]
    found = {_numbers_before(words, place.start) for place in places}
    return (found | {_numbers_behind(words, place.end) for place in places}) - {()}


def end_of(number: str, said: Readings, start: int) -> int | None:
    """Where a number ends that begins at word `start` or later, None where no words mean it."""
    return min((found.end for found in said.get(number, ()) if found.start >= start), default=None)


def is_whole(number: str, said: Readings, start: int) -> bool:
    """Whether a number from word `start` on may be all that was said: 482 of "four eight two one" is not."""
    return any(found.start >= start and found.whole for found in said.get(number, ()))


def are_said(value: str, said: Readings) -> bool:
    """Whether the numbers of `value` are numbers of a request, in the order in which they are said."""
    return _behind_numbers(runs(value), said) is not None


def ends_whole(value: str, said: Readings) -> bool:
    """Whether the last number of `value` may be all that is said of it, behind those before it."""
    *before, last = runs(value)
    at = _behind_numbers(before, said)
    return at is not None and is_whole(last, said, at)


def _behind_numbers(numbers: Sequence[str], said: Readings) -> int | None:
    at: int | None = 0
    for number in numbers:
        at = end_of(number, said, at) if at is not None else None
    return at


def _numbers_before(words: Sequence[str], end: int) -> Call:
    start = end
    while _is_number(words, start - 1):
        start -= 1
    return tuple(words[start:end])


def _numbers_behind(words: Sequence[str], start: int) -> Call:
    start = end = _behind_and(words, start)
    while _is_number(words, end):
        end += 1
    return tuple(words[start:end])


def _is_number(words: Sequence[str], at: int) -> bool:
    """Whether a number word or a digit stands there."""
    return 0 <= at < len(words) and (words[at] in NUMBER_WORDS or words[at].isdigit())


def _from(words: Sequence[str], start: int) -> Iterator[tuple[str, int]]:
    """The numbers that begin at one word, and where they end: several in a row may be one."""
    digits, at = "", start
    while (unit := _unit(words, at)) is not None and len(digits) < LONGEST:
        digits, at = digits + unit[0], unit[1]
        yield digits, at
        ahead = at + 1 if words[at : at + 1] == ["-"] else at
        if len(digits) == 1 and _unit(words, ahead) is None:
            yield f"0{digits}", at  # "and five cents"
        at = ahead


def _unit(words: Sequence[str], at: int) -> tuple[str, int] | None:
    """The longest number of the words at one place, and where it ends."""
    if at >= len(words):
        return None
    word, after = words[at], words[at + 1 : at + 2]
    if word[0].isdigit():
        digits = word.replace(",", "")
        sized = int(digits) * _SIZES[after[0]] if after and after[0] in _SIZES and len(digits) < 4 else None
        return (digits, at + 1) if sized is None else (str(sized), at + 2)
    if word == "oh" or (word == "o" and after and (after[0] in _SMALL or after[0].isdigit())):
        return "0", at + 1
    number = _cardinal(words, at)
    return None if number is None else (str(number[0]), number[1])


def _cardinal(words: Sequence[str], at: int) -> tuple[int, int] | None:
    """ "two hundred and forty", "twelve hundred", "a hundred twenty", "one thousand two hundred"."""
    found = _hundreds(words, at)
    if found is None or words[found[1] : found[1] + 1] != ["thousand"]:
        return found
    rest = _hundreds(words, _behind_and(words, found[1] + 1))
    return (found[0] * 1000, found[1] + 1) if rest is None else (found[0] * 1000 + rest[0], rest[1])


def _hundreds(words: Sequence[str], at: int) -> tuple[int, int] | None:
    value, end = _below_100(words, at) or (0, at)
    if words[end : end + 1] != ["hundred"]:
        return (value, end) if end > at else None
    if end == at and at and words[at - 1] in _SMALL:
        return None  # the middle of a number
    rest = _below_100(words, _behind_and(words, end + 1))
    hundreds = 100 * (value if end > at else 1)
    return (hundreds, end + 1) if rest is None else (hundreds + rest[0], rest[1])


def _behind_and(words: Sequence[str], at: int) -> int:
    return at + 1 if words[at : at + 1] == ["and"] else at


def _below_100(words: Sequence[str], at: int) -> tuple[int, int] | None:
    value = _SMALL.get(words[at]) if at < len(words) else None
    if value is None:
        return None
    ahead = at + 2 if words[at + 1 : at + 2] == ["-"] else at + 1
    unit = _SMALL.get(words[ahead], 0) if value >= 20 and ahead < len(words) else 0
    return (value + unit, ahead + 1) if 0 < unit < 10 else (value, at + 1)
