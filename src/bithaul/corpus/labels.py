"""The labels a corpus knows: its intents, which slots each may have, and how values are really spelled.

Saved as `labels.json` next to `tokenizer.json`. Training is in lower case; `canonical` brings back the
spelling of the data ("Flying J"). What the training values have in common is kept too, so that a decoder can
refuse what no request could mean. It makes no statement about what a text means.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bithaul.corpus.example import Example
from bithaul.corpus.files import write_bytes
from bithaul.corpus.spoken import NUMBER_WORDS, Call, are_said, beside, ends_whole, readings, runs, shape
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.errors import CorruptFile, NotFound

LARGEST_GAP = 2  # words a speaker may put inside a value: "cedar um city"
_NEW_SHARE = 0.01  # largest share of values outside all patterns, estimated by those seen once (Good-Turing)
_SEEN_OFTEN = 20  # requests with an unsaid value from which its evidence is known
_CALLED_OFTEN = 5  # values beside the same number words from which these are known to be no part of them
_DOUBT = 10  # occurrences that a word must outweigh to be evidence
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"[^\W\d]+|\d|[^\w\s]")


class LabelSet(BaseModel):
    """`intents` and `slots[intent]` in the data's spelling, sorted; `canonical` from normalised values.

    Values that are spelled as they are normalised are not listed in `canonical`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    intents: list[str]
    slots: dict[str, list[str]]
    canonical: dict[str, str]
    patterns: dict[str, list[str]] = {}
    """Slots whose values are known to be words of the request or to fit one of these normalised patterns, in
    which 0 stands for any digit. A slot that is not listed may hold anything."""
    spoken: list[str] = []
    """Slots whose numbers are always numbers of the request, said in whatever way."""
    whole: list[str] = []
    """Slots whose values, when they end with a number, end where that of the request does."""
    calls: list[str] = []
    """Number words that are no part of the number they stand beside, such as "ten four"."""
    evidence: dict[str, list[str]] = {}
    """Patterns that were seen often, a number of any length as one 0, with words of which every request with
    such a value holds one."""
    bare: list[str] = []
    """Slots with values that hold neither a letter nor a digit."""
    in_order: bool = False
    """Whether the said values of a label are known to stand in the order of the request, each behind the one
    before it."""
    gaps: list[str] | None = None
    """Words that may stand inside a said value, None where others are to be expected."""

    @classmethod
    def from_examples(cls, examples: Iterable[Example], tokenizer: Tokenizer) -> LabelSet:
        """Collect labels; the most frequent spelling of a value wins, ties by spelling."""
        slots: dict[str, set[str]] = {}
        spellings: dict[str, Counter[str]] = {}
        folded: dict[str, str] = {}
        bare: set[str] = set()
        unsaid, order = _Unsaid(), _Order()
        for example in examples:
            text = tokenizer.fold(example.text)
            words = _words(text)
            unsaid.hear(words)
            names = slots.setdefault(example.intent, set())
            label: list[list[str]] = []
            for name, value in example.slots:
                names.add(name)
                for part in (value,) if isinstance(value, str) else value:
                    key = folded.get(part)
                    if key is None:
                        key = folded[part] = tokenizer.fold(part)
                    spellings.setdefault(key, Counter())[part] += 1
                    if not any(map(str.isalnum, key)):
                        bare.add(name)
                    unsaid.add(name, key, text, words)
                    label.append(_words(key))
            order.add(label, words)
        best = {key: min(found, key=lambda s: (-found[s], s)) for key, found in spellings.items()}
        patterns = unsaid.patterns()
        return cls(
            intents=sorted(slots),
            slots={intent: sorted(slots[intent]) for intent in sorted(slots)},
            canonical={key: best[key] for key in sorted(best) if best[key] != key},
            patterns=patterns,
            spoken=unsaid.spoken(),
            whole=unsaid.whole(),
            calls=unsaid.calls(),
            evidence=unsaid.evidence({shape(pattern) for found in patterns.values() for pattern in found}),
            bare=sorted(bare),
            in_order=order.holds(),
            gaps=order.gaps(),
        )

    def spell(self, normalised: str) -> str:
        """The data's spelling of a normalised value, or the value itself."""
        return self.canonical.get(normalised, normalised)

    def save(self, path: Path) -> None:
        write_bytes(path, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> LabelSet:
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"There are no labels at {path}; run `bithaul corpus tokenize` first.") from None
        except ValidationError as error:
            raise CorruptFile(f"{path} is not a label file: {error.errors()[0]['msg']}.") from None


class _Unsaid:
    """Values that are not words of their request, and what the requests with them have in common."""

    def __init__(self) -> None:
        self._values: Counter[str] = Counter()  # by slot, the said ones too
        self._patterns: dict[str, Counter[str]] = {}
        self._numbers: dict[str, Counter[bool]] = {}  # by slot, whether its numbers are the request's
        self._wholes: dict[str, Counter[bool]] = {}  # by slot, whether the last of them is a whole one
        self._beside: dict[str, list[set[Call]]] = {}  # by slot, number words beside cut values
        self._heard: Counter[str] = Counter()  # requests that hold a word
        self._requests: dict[str, list[frozenset[str]]] = {}  # the words of each request, by shape

    def hear(self, words: Sequence[str]) -> None:
        self._heard.update(set(words))

    def add(self, slot: str, value: str, text: str, words: Sequence[str]) -> None:
        self._values[slot] += 1
        patterns = self._patterns.setdefault(slot, Counter())
        if said_places(_words(value), words):
            return
        pattern = _DIGIT.sub("0", value)
        patterns[pattern] += 1
        if runs(value):
            said = readings(text)
            self._numbers.setdefault(slot, Counter())[are_said(value, said)] += 1
            if value[-1].isdigit():
                whole = ends_whole(value, said)
                self._wholes.setdefault(slot, Counter())[whole] += 1
                if not whole and len(runs(value)) == 1:  # dollars are no call in front of cents
                    self._beside.setdefault(slot, []).append(set(filter(_may_be_call, beside(value, text))))
        if any(map(str.isalpha, pattern)):
            self._requests.setdefault(shape(value), []).append(frozenset(words))

    def patterns(self) -> dict[str, list[str]]:
        """Patterns by slot, of the slots in which another one is not to be expected."""
        return {
            name: sorted(self._patterns[name])
            for name in sorted(self._values)
            if sum(count == 1 for count in self._patterns[name].values()) <= _NEW_SHARE * self._values[name]
        }

    def spoken(self) -> list[str]:
        return [
            name for name, said in sorted(self._numbers.items()) if said[False] <= _NEW_SHARE * said.total()
        ]

    def whole(self) -> list[str]:
        calls = self._calls()
        called = {name: sum(not calls.isdisjoint(f) for f in found) for name, found in self._beside.items()}
        return [
            name
            for name, whole in sorted(self._wholes.items())
            if whole.total() >= _SEEN_OFTEN
            and whole[False] - called.get(name, 0) <= _NEW_SHARE * whole.total()
        ]

    def calls(self) -> list[str]:
        return sorted(" ".join(words) for words in self._calls())

    def _calls(self) -> set[Call]:
        heard = Counter(words for slot in self._beside.values() for found in slot for words in found)
        return {words for words, n in heard.items() if n >= _CALLED_OFTEN}

    def evidence(self, shapes: set[str]) -> dict[str, list[str]]:
        """For each shape that was seen often, a few words: every request with it holds one of them."""
        found: dict[str, list[str]] = {}
        for name in sorted(shapes & self._requests.keys()):
            requests = self._requests[name]
            words = self._covering(requests) if len(requests) >= _SEEN_OFTEN else None
            if words is not None:
                found[name] = sorted(words)
        return found

    def _covering(self, requests: Sequence[frozenset[str]]) -> list[str] | None:
        """The word that tells most of the requests it is in, then that of the others, and so on."""
        chosen: list[str] = []
        left = list(requests)
        while left:
            count = Counter(word for words in left for word in words if _may_tell(word))
            if not count:
                return None
            best = max(count, key=lambda word: (count[word] ** 2 / (self._heard[word] + _DOUBT), word))
            chosen.append(best)
            left = [words for words in left if best not in words]
        return chosen


def _may_tell(word: str) -> bool:
    """Numbers tell nothing: another request says another one."""
    return word.isalpha() and word not in NUMBER_WORDS


def _may_be_call(words: Call) -> bool:
    """One word, or a digit, may be the rest of any number."""
    return len(words) > 1 and NUMBER_WORDS.issuperset(words)


class _Order:
    """Where the said values of labels stand, and which words were left out inside them."""

    def __init__(self) -> None:
        self._labels: Counter[bool] = Counter()  # with several said values, by whether they are in order
        self._gaps: Counter[str] = Counter()
        self._said = 0

    def add(self, label: Iterable[Sequence[str]], words: Sequence[str]) -> None:
        """The values of one label, and its request, all as words."""
        behind, count, kept = 0, 0, True
        for value in label:
            places = said_places(value, words)
            if not places:
                continue
            count += 1
            self._hear(min(places, key=lambda found: found[-1] - found[0]), words)
            end = min((found[-1] + 1 for found in places if found[0] >= behind), default=None)
            kept, behind = kept and end is not None, end or behind
        if count > 1:
            self._labels[kept] += 1

    def _hear(self, places: Sequence[int], words: Sequence[str]) -> None:
        self._said += 1
        self._gaps.update(words[i] for i in range(places[0], places[-1]) if i not in places)

    def holds(self) -> bool:
        total = self._labels.total()
        return total >= _SEEN_OFTEN and self._labels[False] <= _NEW_SHARE * total

    def gaps(self) -> list[str] | None:
        new = sum(count == 1 for count in self._gaps.values())
        known = self._said >= _SEEN_OFTEN and new <= _NEW_SHARE * self._said
        return sorted(self._gaps) if known else None


def said_places(value: Sequence[str], request: Sequence[str]) -> list[tuple[int, ...]]:
    """Where the words of `value` stand in `request`: in order, at most `LARGEST_GAP` others between two.

    The places of its words, once for each first and last place.
    """
    found: dict[tuple[int, int], tuple[int, ...]]
    found = {(i, i): (i,) for i, word in enumerate(request) if value and word == value[0]}
    for wanted in value[1:]:
        found = {
            (first, j): (*places, j)
            for (first, last), places in found.items()
            for j in range(last + 1, min(last + 2 + LARGEST_GAP, len(request)))
            if request[j] == wanted
        }
    return list(found.values())


def _words(folded: str) -> list[str]:
    return _WORD.findall(folded)
