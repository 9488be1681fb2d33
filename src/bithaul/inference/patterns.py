"""Values that are not words of the request: which of them a request can mean at all.

What is known from training is a tree of tokens in which every digit is alike. A request opens only a part
of it: a value needs a word that says it ("okc" for "Oklahoma City"), and its numbers must be the request's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from bithaul.corpus.pieces import SPACE
from bithaul.corpus.spoken import NUMBER, Call, end_of, is_whole, readings, shape
from bithaul.corpus.tokenizer import Tokenizer

Evidence = Mapping[str, Sequence[str]]
_MANY_LENGTHS = 4  # where numbers of so many lengths were seen, one may have any


@dataclass
class PatternTree:
    """Values as a tree of tokens; a branch under the token of 0 stands for every digit of the same form.

    Where numbers are checked against the request, ids may be of any length (cents have two digits), and what
    is said may go on with a pattern behind a joint: with "6 pm" and "monday at 6 pm" known, "friday at 6 pm"
    is known too.
    """

    digits: dict[int, int]  # id of a digit to the id of the 0 written like it
    inside: frozenset[int]  # digits that stand behind another piece of the same word
    branches: dict[int, PatternTree] = field(default_factory=dict)
    ends: bool = False
    in_number: bool = False  # more digits may follow
    free: bool = False  # a value below needs no evidence
    needs: set[int] = field(default_factory=set)  # otherwise a request needs one of these ids to come here
    end_needs: frozenset[int] | None = frozenset()  # the same to end here, None where nothing is needed
    joints: set[int] = field(default_factory=set)  # of the root: tokens behind which all patterns may begin

    @classmethod
    def of(
        cls,
        patterns: Iterable[str],
        tokenizer: Tokenizer,
        evidence: Evidence | None = None,
        *,
        spoken: bool = False,
    ) -> PatternTree:
        """Patterns with words the vocabulary does not have are left out; those without evidence need none."""
        digits = _digit_forms(tokenizer)
        inside = frozenset(i for i in digits if not tokenizer.token(i).startswith(SPACE))
        root = cls(digits, inside)
        known = {pattern: tuple(i for i, _ in tokenizer.encode_words(pattern)) for pattern in patterns}
        known = {pattern: ids for pattern, ids in known.items() if ids and tokenizer.unk not in ids}
        whole = set(known.values())
        lengths = _lengths(known) if spoken else {}
        for pattern, ids in known.items():
            if spoken:
                root.joints.update(ids[n - 1] for n in range(2, len(ids)) if ids[n:] in whole)
            words = (evidence or {}).get(shape(pattern))
            needs = None if words is None else frozenset(_first_ids(words, tokenizer))
            node, before, any_length = root, "", False
            for token in ids:
                if not (node.in_number and token in inside):
                    node = node.branches.setdefault(token, cls(digits, inside))
                if token in digits and not (token in inside and before[-1:].isdigit()):
                    any_length = len(lengths.get(_part(before), ())) >= _MANY_LENGTHS
                node.in_number = any_length and token in digits
                before += tokenizer.token(token).replace(SPACE, " ")
                node.free = node.free or needs is None
                node.needs |= needs or frozenset()
            node.ends = True
            node.end_needs = None if needs is None or node.end_needs is None else node.end_needs | needs
        return root

    @cached_property
    def tokens(self) -> dict[int, PatternTree]:
        """Every token that leads on, and where to."""
        zeros = self.branches.keys() & set(self.digits.values())
        found = {token: node for token, node in self.branches.items() if token not in zeros}
        found |= {i: self.branches[zero] for i, zero in self.digits.items() if zero in zeros}
        return found | (dict.fromkeys(self.inside, self) if self.in_number else {})


def _lengths(patterns: Iterable[str]) -> dict[str, set[int]]:
    """How long numbers are, those behind a mark like cents and minutes apart from all others."""
    found: dict[str, set[int]] = {}
    for pattern in patterns:
        for number in NUMBER.finditer(pattern):
            found.setdefault(_part(pattern[: number.start()]), set()).add(len(number.group()))
    return found


def _part(before: str) -> str:
    """The mark that makes what follows it a part of the number before: "." in "18."."""
    return before[-1] if len(before) > 1 and before[-2].isdigit() and not before[-1].isspace() else ""


def _digit_forms(tokenizer: Tokenizer) -> dict[int, int]:
    ids = {tokenizer.token(i): i for i in range(tokenizer.vocab_size)}
    forms = [(f"{mark}{digit}", f"{mark}0") for mark in ("", SPACE) for digit in range(10)]
    return {ids[form]: ids[zero] for form, zero in forms if form in ids and zero in ids}


def _first_ids(words: Iterable[str], tokenizer: Tokenizer) -> Iterable[int]:
    """The first piece of each word, as it is written after a space and after a mark ("i-40", "(i-40")."""
    for word in words:
        for text in (word, f"-{word}"):
            pieces = [i for i, spelling in tokenizer.encode_words(text) if spelling.strip() != "-"]
            yield from pieces[:1]


class Numbers:
    """The numbers of one request, and the last place where each beginning of one stands."""

    def __init__(self, text: str, calls: Collection[Call] = ()) -> None:
        self.said = readings(text, calls)
        self.begun: dict[str, int] = {}
        for number, places in self.said.items():
            last = max(place.start for place in places)
            for n in range(1, len(number) + 1):
                self.begun[number[:n]] = max(last, self.begun.get(number[:n], 0))

    def behind(self, number: str, start: int) -> int | None:
        """Where what follows a number may begin, None where the request does not go on with that number."""
        return end_of(number, self.said, start) if number else start

    def may_end(self, number: str, start: int, *, whole: bool) -> bool:
        """Whether a value may end with this number, or `whole` only where the request's number ends."""
        if whole and number:
            return is_whole(number, self.said, start)
        return self.behind(number, start) is not None


@dataclass(frozen=True)
class PatternWalk:
    """A value on its way down a tree. `numbers` is None where a slot's numbers need not be the request's;
    `whole` where a value may not end inside one of them."""

    node: PatternTree
    said: frozenset[int]  # the ids of the request
    numbers: Numbers | None
    spellings: Sequence[str]
    whole: bool = False
    run: str = ""  # the digits of the number that the value stands in
    start: int = 0  # the place in the request behind the number before

    @cached_property
    def choices(self) -> dict[int, PatternWalk]:
        """The tokens that lead on to a value that this request can mean."""
        found = {}
        for token, node in self.node.tokens.items():
            walk = self._step(token, node) if node.free or not node.needs.isdisjoint(self.said) else None
            if walk is not None and (self.numbers is None or walk.ends or walk.choices):
                found[token] = walk
        return found

    @property
    def ends(self) -> bool:
        """Whether the value may end here."""
        needs = self.node.end_needs
        told = needs is None or not needs.isdisjoint(self.said)
        if not (self.node.ends and told) or self.numbers is None:
            return self.node.ends and told
        return self.numbers.may_end(self.run, self.start, whole=self.whole)

    def _step(self, token: int, node: PatternTree) -> PatternWalk | None:
        """The walk with one more token, None where no number of the request goes on like that."""
        if self.numbers is None:
            return replace(self, node=node)
        run, start = self.run, self.start
        if token not in self.node.inside:
            behind = self.numbers.behind(run, start)
            if behind is None:
                return None
            run, start = "", behind
        if token in self.node.digits:
            run += self.spellings[token].strip(SPACE)
            if self.numbers.begun.get(run, -1) < start:
                return None
        return replace(self, node=node, run=run, start=start)
