"""Which token may come next in a label: the grammar that makes every decoded label valid JSON.

`LabelGrammar` is what a model may say at all (its intents, the slots of each, the words of values);
`LabelState` is one label in the making. It always ends: a label has a budget of tokens, a name occurs once,
and nothing is opened that the budget cannot close. It does not score anything and knows no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property

from bithaul.corpus import pieces
from bithaul.corpus.labels import LARGEST_GAP, LabelSet
from bithaul.corpus.spoken import Call
from bithaul.corpus.tokenizer import JsonStructure, Tokenizer
from bithaul.errors import CorruptFile, InvalidInput
from bithaul.inference.patterns import Numbers, PatternTree, PatternWalk

MAX_VALUE_TOKENS = 32
_SENTENCE_MARKS = frozenset(",.;:!?")
_SHORTEST_SLOT = 4  # name, opener, one word, closer
_SHORTEST_VALUE = 2  # one word, closer
_MOST_BARE = 2  # pieces without a letter or digit at the beginning of a value


@dataclass(frozen=True)
class LabelGrammar:
    """Token ids of one model's labels. `words` are the ids a value may be made of, `[UNK]` among them."""

    structure: JsonStructure
    intents: tuple[str, ...]
    intent_ids: tuple[int, ...]
    slot_ids: dict[str, tuple[int, ...]]
    slot_names: dict[int, str]
    words: frozenset[int]
    unknown: int
    inside: frozenset[int]  # ids of pieces that stand inside a written word
    letters: frozenset[int]  # ids of words and parts of words
    digits: frozenset[int]
    bare: frozenset[int]  # ids of pieces without a letter or digit
    marks: frozenset[int]  # ids of sentence marks, with which no said value begins
    patterns: dict[int, PatternTree]  # per restricted slot: what a value may be besides words of the request
    spoken: frozenset[int]  # slots whose numbers are the request's
    whole: frozenset[int]  # slots whose values do not end inside a number of the request
    calls: frozenset[Call]  # number words that are no part of a number beside them
    bare_slots: frozenset[int]  # slots with values that hold neither letter nor digit
    gaps: frozenset[int] | None  # ids of what may stand inside a said value, None where anything may
    in_order: bool  # said values stand in the order of the request
    spellings: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, labels: LabelSet) -> LabelGrammar:
        """InvalidInput for a model without intents, CorruptFile for labels of another tokenizer."""
        if not labels.intents:
            raise InvalidInput(
                "This model was trained on plain text and knows no intents; "
                "train on labelled requests to classify."
            )
        structure = tokenizer.structure()
        slot_ids = {
            intent: tuple(_id(structure.slots, name, tokenizer) for name in labels.slots.get(intent, ()))
            for intent in labels.intents
        }
        special = {tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.user, tokenizer.intent}
        frame = structure.ids() | special
        spellings = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
        blank = {i for i, spelling in enumerate(spellings) if not spelling.strip("▁ ")}
        words = frozenset(range(tokenizer.vocab_size)) - frame - blank
        return cls(
            structure=structure,
            intents=tuple(labels.intents),
            intent_ids=tuple(_id(structure.intents, name, tokenizer) for name in labels.intents),
            slot_ids=slot_ids,
            slot_names={
                _id(structure.slots, name, tokenizer): name
                for names in labels.slots.values()
                for name in names
            },
            words=words,
            unknown=tokenizer.unk,
            inside=frozenset(i for i in words if i != tokenizer.unk and not spellings[i].startswith("▁")),
            letters=frozenset(i for i in words if pieces.is_word(spellings[i])),
            digits=frozenset(i for i in words if spellings[i].strip(pieces.SPACE).isdigit()),
            bare=frozenset(i for i in words if i != tokenizer.unk and not _tells(spellings[i])),
            marks=frozenset(i for i in words if spellings[i].strip(pieces.SPACE) in _SENTENCE_MARKS),
            patterns={
                _id(structure.slots, name, tokenizer): PatternTree.of(
                    patterns, tokenizer, labels.evidence, spoken=name in labels.spoken
                )
                for name, patterns in labels.patterns.items()
            },
            spoken=frozenset(_id(structure.slots, name, tokenizer) for name in labels.spoken),
            whole=frozenset(_id(structure.slots, name, tokenizer) for name in labels.whole),
            calls=frozenset(tuple(words.split()) for words in labels.calls),
            bare_slots=frozenset(_id(structure.slots, name, tokenizer) for name in labels.bare),
            gaps=None
            if labels.gaps is None
            else frozenset(i for word in labels.gaps for i, _ in tokenizer.encode_words(word))
            - {tokenizer.unk},
            in_order=labels.in_order,
            spellings=tuple(spellings),
        )


def _tells(spelling: str) -> bool:
    """Whether a piece holds a letter or a digit."""
    return any(map(str.isalnum, spelling.replace(pieces.SPACE, "")))


def _id(known: dict[str, int], name: str, tokenizer: Tokenizer) -> int:
    found = known.get(name, known.get(tokenizer.fold(name)))
    if found is None:
        raise CorruptFile(f"The tokenizer does not know the label {name!r}; copy the model folder again.")
    return found


@dataclass(frozen=True)
class DecodedSlot:
    """One slot as token ids; `several` when the label holds a list."""

    name: str
    values: tuple[tuple[int, ...], ...]
    several: bool


@dataclass(frozen=True)
class Choices:
    """What may come next: these ids, and any word (`[UNK]` and bare pieces only when they are true)."""

    fixed: tuple[int, ...]
    words: bool = False
    unknown: bool = False
    bare: bool = True


class _Phase(Enum):
    INTENT_GIVEN = auto()
    SLOT = auto()
    OPENER = auto()
    VALUE = auto()
    DONE = auto()


@dataclass
class LabelState:
    """One label after its intent. `budget` counts the tokens it may still have, at least 1.

    `request` are the ids of the request's pieces: a value holds at most as many `[UNK]` as it has, and the
    value of a restricted slot is made of its words in order or fits a pattern. Where the labels are known to
    keep the order of their requests, no words are said twice and none after later ones. A value is never
    punctuation alone, unless the slot had such values in training.
    """

    grammar: LabelGrammar
    intent: str
    budget: int
    request: tuple[int, ...]
    max_value_tokens: int = MAX_VALUE_TOKENS
    _phase: _Phase = field(default=_Phase.INTENT_GIVEN, init=False)
    _free: list[int] = field(init=False)
    _slots: list[tuple[int, bool, list[list[int]]]] = field(default_factory=list, init=False)
    _starts: list[int] = field(init=False)  # places in the request where a said value may begin
    _next: list[int] = field(default_factory=list, init=False)  # places where the current value may go on
    _walks: list[PatternWalk] = field(default_factory=list, init=False)  # where in its patterns it stands
    _roots: dict[int, PatternWalk] = field(default_factory=dict, init=False)
    _said: bool = field(default=False, init=False)  # the value so far is words of the request
    _end: int = field(default=0, init=False)  # the first place behind those words
    _behind: int = field(default=0, init=False)  # no said value may begin before this place

    def __post_init__(self) -> None:
        words = self.grammar.words - self.grammar.inside - self.grammar.marks
        self._starts = [
            i for i, token in enumerate(self.request) if token in words and self._leads_to_words(i)
        ]
        self._free = [slot for slot in self.grammar.slot_ids[self.intent] if self._may_begin(slot, 0)]
        if not self._free or self.budget < 1 + _SHORTEST_SLOT:
            self._phase = _Phase.DONE  # only `close_no_slots` is left to say

    @property
    def done(self) -> bool:
        return self._phase is _Phase.DONE

    def slots(self) -> tuple[DecodedSlot, ...]:
        """The slots of a label that is done."""
        names = self.grammar.slot_names
        return tuple(
            DecodedSlot(names[slot], tuple(map(tuple, values)), several)
            for slot, several, values in self._slots
        )

    def choices(self) -> Choices:
        """Never empty while the label is not done."""
        marks = self.grammar.structure
        match self._phase:
            case _Phase.INTENT_GIVEN:
                return Choices((marks.close_no_slots, marks.open_slots))
            case _Phase.SLOT:
                return Choices(tuple(slot for slot in self._free if self._may_begin(slot, self._behind)))
            case _Phase.OPENER:
                return Choices((marks.key_value, marks.list_open))
            case _Phase.VALUE:
                return self._in_value()
            case _Phase.DONE:
                return Choices(())

    def _in_value(self) -> Choices:
        slot, _, values = self._slots[-1]
        value = values[-1]
        more = not value or (self.budget >= _SHORTEST_VALUE and len(value) < self.max_value_tokens)
        tells = slot in self.grammar.bare_slots or not self.grammar.bare.issuperset(value)
        bare = tells or (len(value) < _MOST_BARE and self._room(value) > _SHORTEST_VALUE)
        ends = self._after_value() if tells or not more else ()
        if slot not in self.grammar.patterns:
            unknown = more and value.count(self.grammar.unknown) < self.request.count(self.grammar.unknown)
            return Choices(ends, words=more, unknown=unknown, bare=bare)
        going_on = {self.request[i] for i in self._next} if more else set()
        if more:
            going_on.update(*(walk.choices for walk in self._walks))
        if not bare:
            going_on = going_on - self.grammar.bare or going_on
        whole = self._said or any(walk.ends for walk in self._walks)
        if not going_on:
            ends = self._after_value()
        return Choices((*(ends if whole or not going_on else ()), *sorted(going_on)))

    def _room(self, value: Sequence[int]) -> int:
        """Tokens that are left for a value and what closes it."""
        return min(self.budget, self.max_value_tokens - len(value) + 1)

    def _leads_to_words(self, place: int) -> bool:
        """Whether a value that begins there can reach a letter or a digit."""
        reach = self.request[place : place + 2 + LARGEST_GAP]
        return self.request[place] not in self.grammar.bare or not self.grammar.bare.issuperset(reach)

    def _may_begin(self, slot: int, behind: int) -> bool:
        """Whether any value of `slot` may begin, said ones from the place `behind` on."""
        if slot not in self.grammar.patterns or (self._starts and self._starts[-1] >= behind):
            return True
        return bool(self._root(slot).choices)

    def _after_value(self) -> tuple[int, ...]:
        """What may close the current value, which has at least one token."""
        slot, several, values = self._slots[-1]
        if not values[-1]:
            return ()
        marks = self.grammar.structure
        after = [marks.list_close if several else marks.close]
        behind = self._behind_value()
        if self.budget >= 1 + _SHORTEST_SLOT and any(self._may_begin(free, behind) for free in self._free):
            after.append(marks.list_close_next if several else marks.next_slot)
        if several and self.budget >= 1 + _SHORTEST_VALUE and self._may_begin(slot, behind):
            after.append(marks.list_next)
        return tuple(after)

    def _behind_value(self) -> int:
        """The place behind the current value, if that is surely words of the request."""
        sure = self._said and not any(walk.ends for walk in self._walks)
        return self._end if self.grammar.in_order and sure else self._behind

    def advance(self, token: int) -> None:
        """Take one of `choices()`."""
        marks = self.grammar.structure
        self.budget -= 1
        match self._phase:
            case _Phase.INTENT_GIVEN:
                self._phase = _Phase.SLOT if token == marks.open_slots else _Phase.DONE
            case _Phase.SLOT:
                self._free.remove(token)
                self._slots.append((token, False, [[]]))
                self._phase = _Phase.OPENER
            case _Phase.OPENER:
                if token == marks.list_open:
                    self._slots[-1] = (self._slots[-1][0], True, [[]])
                self._phase = _Phase.VALUE
                self._begin_value()
            case _Phase.VALUE:
                self._advance_value(token)
            case _Phase.DONE:
                raise AssertionError("a finished label takes no more tokens")

    def _advance_value(self, token: int) -> None:
        marks = self.grammar.structure
        values = self._slots[-1][2]
        if token in (marks.close, marks.list_close):
            self._phase = _Phase.DONE
        elif token in (marks.next_slot, marks.list_close_next):
            self._behind = self._behind_value()
            self._phase = _Phase.SLOT
        elif token == marks.list_next:
            self._behind = self._behind_value()
            values.append([])
            self._begin_value()
        else:
            values[-1].append(token)
            self._go_on(token)

    def _is_gap(self, first: int, end: int) -> bool:
        """Whether people say what stands there in the middle of a value."""
        return self.grammar.gaps is None or self.grammar.gaps.issuperset(self.request[first:end])

    def _cuts_word(self, place: int) -> bool:
        """Whether the next piece of the request goes on with the word or the number at `place`."""
        here, after = self.request[place], self.request[place + 1 : place + 3]
        if not after or after[0] not in self.grammar.inside:
            return False
        if here in self.grammar.letters:
            return after[0] in self.grammar.letters
        digits, marks = self.grammar.digits, self.grammar.marks
        if after[0] in digits:
            return here in digits or (here in marks and self.request[place - 1] in digits)
        return here in digits and after[0] in marks and len(after) == 2 and after[1] in digits

    @cached_property
    def _numbers(self) -> Numbers:
        spellings = self.grammar.spellings
        text = "".join(spellings[i] for i in self.request).replace(pieces.SPACE, " ")
        return Numbers(text, self.grammar.calls)

    def _root(self, slot: int) -> PatternWalk:
        """The beginning of all patterns of a restricted slot."""
        if slot not in self._roots:
            self._roots[slot] = PatternWalk(
                self.grammar.patterns[slot],
                frozenset(self.request),
                self._numbers if slot in self.grammar.spoken else None,
                self.grammar.spellings,
                whole=slot in self.grammar.whole,
            )
        return self._roots[slot]

    def _begin_value(self) -> None:
        self._next, self._said = [i for i in self._starts if i >= self._behind], False
        slot = self._slots[-1][0]
        self._walks = [self._root(slot)] if slot in self.grammar.patterns else []

    def _go_on(self, token: int) -> None:
        """Follow the value through the request, over small gaps to whole words, and down its patterns."""
        at = [i for i in self._next if self.request[i] == token]
        whole = [i for i in at if not self._cuts_word(i)]
        self._said, self._end = bool(whole), 1 + min(whole, default=self._behind - 1)
        after = {i + 1 for i in at} | {
            j
            for i in whole
            for j in range(i + 2, min(i + 2 + LARGEST_GAP, len(self.request)))
            if self.request[j] not in self.grammar.inside and self._is_gap(i + 1, j)
        }
        self._next = sorted(
            i for i in after if i < len(self.request) and self.request[i] in self.grammar.words
        )
        self._walks = [walk.choices[token] for walk in self._walks if token in walk.choices]
        slot, _, values = self._slots[-1]
        tree = self.grammar.patterns.get(slot)
        if self._said and tree is not None and token in tree.joints and len(values[-1]) > 1:
            self._walks.append(self._root(slot))  # "monday at" is said, "6:30 pm" is a pattern
