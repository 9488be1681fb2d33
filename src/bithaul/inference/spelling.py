"""From decoded slots back to what people write: the user's own words and the data's spelling.

A value is found again in the request, so `[UNK]` becomes the word the user said, and capitals come back. A
spelling the training data knows ("Flying J") wins over both. Values that say nothing are left out. Nothing
here can fail: whatever was decoded, the result is plain strings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bithaul.corpus.tokenizer import Tokenizer
from bithaul.inference.grammar import DecodedSlot
from bithaul.inference.loader import LoadedModel

SlotText = str | list[str]
Piece = tuple[int, str]
"""Token id and normalised spelling, with the space before it."""


@dataclass(frozen=True)
class Request:
    """A request's text and as many of its pieces as the model reads."""

    text: str
    pieces: tuple[Piece, ...]
    cut: bool

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, *, longest: int) -> Request:
        pieces = tokenizer.encode_words(text)
        return cls(text, tuple(pieces[:longest]), len(pieces) > longest)

    @property
    def ids(self) -> list[int]:
        return [token for token, _ in self.pieces]


def spell_slots(request: Request, slots: Sequence[DecodedSlot], model: LoadedModel) -> dict[str, SlotText]:
    """Slot names with the text of their values, in decoded order; a list stays a list."""
    finder = _Finder(request, model.tokenizer)
    spelled: dict[str, SlotText] = {}
    for slot in slots:
        texts = [text for value in slot.values if (text := _spell(value, finder, model))]
        if texts:
            spelled[slot.name] = texts if slot.several else texts[0]
    return spelled


def _spell(value: Sequence[int], finder: _Finder, model: LoadedModel) -> str:
    said = finder.find(value)
    return model.labels.canonical.get(said.normalised) or said.written or said.normalised


@dataclass(frozen=True)
class Said:
    """A value in normal form, and as the user wrote it when it is a span of the request."""

    normalised: str
    written: str | None


class _Finder:
    """Finds values in one request. Slots keep the order of the utterance, so a value is looked for behind the
    one before it first, and the same words are not taken twice while others are left.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._behind = 0
        self._used: set[int] = set()
        self._written: list[tuple[int, int]] | None = None

    def find(self, value: Sequence[int]) -> Said:
        units = _units(value, self._tokenizer)
        start = self._span(units)
        if start is not None:
            stop = start + len(units)
            self._take(range(start, stop))
            return Said(_join(self._request.pieces[start:stop]), self._original(start, stop))
        return Said(_join(self._patched(units)), None)

    def _span(self, units: Sequence[Piece]) -> int | None:
        """Where the value stands in the request; `[UNK]` stands for any unknown word."""
        pieces = self._request.pieces
        found = [
            start
            for start in range(len(pieces) - len(units) + 1)
            if all(self._equal(unit, pieces[start + i], first=i == 0) for i, unit in enumerate(units))
        ]
        fresh = [start for start in found if self._used.isdisjoint(range(start, start + len(units)))]
        ahead = [start for start in fresh if start >= self._behind]
        return next(iter([*ahead, *fresh, *found]), None)

    def _equal(self, unit: Piece, piece: Piece, *, first: bool) -> bool:
        unknown = self._tokenizer.unk
        if unit[0] == unknown or piece[0] == unknown:
            return unit[0] == piece[0]
        # A value starts with a space even where its first word stands inside another one ("i-35").
        return unit[1].lstrip() == piece[1].lstrip() if first else unit[1] == piece[1]

    def _patched(self, units: Sequence[Piece]) -> list[Piece]:
        """A value that is not a span: each `[UNK]` becomes the likeliest unknown word, or is left out."""
        pieces, unknown = self._request.pieces, self._tokenizer.unk
        patched: list[Piece] = []
        last: int | None = None  # where the unit before stands in the request
        for unit in units:
            if unit[0] != unknown:
                last = next((i for i, p in enumerate(pieces) if p[1].strip() == unit[1].strip()), None)
                patched.append(unit)
                continue
            free = [i for i, p in enumerate(pieces) if p[0] == unknown and i not in self._used]
            after = [i for i in free if last is not None and i == last + 1]
            ahead = [i for i in free if i >= self._behind]
            last = next(iter([*after, *ahead, *free]), None)
            if last is not None:
                self._take([last])
                patched.append(pieces[last])
        return patched

    def _take(self, places: Sequence[int]) -> None:
        self._used.update(places)
        self._behind = max(places) + 1

    def _original(self, start: int, stop: int) -> str | None:
        """The characters of the request behind pieces `start` to `stop`, with single spaces."""
        if self._written is None:
            self._written = _written_spans(self._request, self._tokenizer)
        if not self._written:
            return None
        text = self._request.text[self._written[start][0] : self._written[stop - 1][1]]
        return " ".join(text.split()) or None


def _units(value: Sequence[int], tokenizer: Tokenizer) -> list[Piece]:
    r"""A value's tokens as pieces of plain text: the JSON escapes `\"` and `\\` are undone."""
    units: list[Piece] = []
    escaped: str | None = None  # the space in front of a backslash that may escape what follows
    for token in value:
        spelling = tokenizer.token(token).replace("▁", " ")
        if escaped is not None and spelling in ('"', "\\"):
            units[-1] = (token, escaped + spelling)
            escaped = None
            continue
        units.append((token, spelling))
        escaped = spelling[:-1] if spelling.strip() == "\\" else None
    return units


def _join(pieces: Sequence[Piece]) -> str:
    return "".join(spelling for _, spelling in pieces).strip()


def _written_spans(request: Request, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Start and end in the request's text of each piece; empty when they cannot be told.

    Each written word is cut into pieces alone; that must give the same pieces as the whole request. Inside a
    word whose normal form has another length, every piece spans the whole word.
    """
    spans: list[tuple[int, int]] = []
    spellings: list[str] = []
    for match in re.finditer(r"\S+", request.text):
        if len(spans) >= len(request.pieces):
            break
        word = tokenizer.encode_words(match.group())
        exact = sum(len(spelling.strip()) for _, spelling in word) == len(match.group())
        offset = match.start()
        for _, spelling in word:
            end = offset + len(spelling.strip())
            spans.append((offset, end) if exact else match.span())
            spellings.append(spelling)
            offset = end
    same = all(a == p[1] for a, p in zip(spellings, request.pieces, strict=False))
    return spans if same and len(spans) >= len(request.pieces) else []
