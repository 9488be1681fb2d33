"""Values that are not words of the request: which of them a request can mean at all.

What is known from training is a tree of tokens in which every digit is alike. A request opens only a part
of it: a value needs a word that says it ("okc" for "Oklahoma City"), and its numbers must be the request's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from bithaul.corpus.pieces import SPACE
from bithaul.corpus.spoken import readings
from bithaul.corpus.tokenizer import Tokenizer

Evidence = Mapping[str, Sequence[str]]


@dataclass
class PatternTree:
    """Values as a tree of tokens; a branch under the token of 0 stands for every digit of the same form."""

    digits: dict[int, int]  # id of a digit to the id of the 0 written like it
    branches: dict[int, PatternTree] = field(default_factory=dict)
    ends: bool = False
    free: bool = False  # a value below needs no evidence
    needs: set[int] = field(default_factory=set)  # otherwise a request needs one of these ids to come here
    end_needs: frozenset[int] | None = None  # the same to end here

    @classmethod
    def of(
        cls, patterns: Iterable[str], tokenizer: Tokenizer, evidence: Evidence | None = None
    ) -> PatternTree:
        """Patterns with words the vocabulary does not have are left out; those without evidence need none."""
        root = cls(_digit_forms(tokenizer))
        for pattern in patterns:
            ids = [i for i, _ in tokenizer.encode_words(pattern)]
            if not ids or tokenizer.unk in ids:
                continue
            words = (evidence or {}).get(pattern)
            needs = None if words is None else frozenset(_first_ids(words, tokenizer))
            node = root
            for token in ids:
                node = node.branches.setdefault(token, cls(root.digits))
                node.free = node.free or needs is None
                node.needs |= needs or frozenset()
            node.ends, node.end_needs = True, needs
        return root

    def branch(self, token: int) -> PatternTree | None:
        return self.branches.get(self.digits.get(token, token))

    @cached_property
    def tokens(self) -> dict[int, PatternTree]:
        """Every token that leads on, and where to."""
        zeros = self.branches.keys() & set(self.digits.values())
        found = {token: node for token, node in self.branches.items() if token not in zeros}
        return found | {i: self.branches[zero] for i, zero in self.digits.items() if zero in zeros}


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
    """The numbers of one request, and how they begin."""

    def __init__(self, text: str) -> None:
        self.whole = readings(text)
        self.begun = frozenset(number[:n] for number in self.whole for n in range(len(number) + 1))


@dataclass(frozen=True)
class PatternWalk:
    """A value on its way down a tree. `numbers` is None where a slot's numbers need not be the request's."""

    node: PatternTree
    said: frozenset[int]  # the ids of the request
    numbers: Numbers | None
    spellings: Sequence[str]
    run: str = ""  # the digits of the number that the value stands in

    @cached_property
    def choices(self) -> dict[int, PatternWalk]:
        """The tokens that lead on to a value that this request can mean."""
        found = {}
        for token, node in self.node.tokens.items():
            run = self._run_after(token) if node.free or not node.needs.isdisjoint(self.said) else None
            if run is not None:
                walk = PatternWalk(node, self.said, self.numbers, self.spellings, run)
                if self.numbers is None or walk.ends or walk.choices:
                    found[token] = walk
        return found

    @property
    def ends(self) -> bool:
        """Whether the value may end here."""
        needs = self.node.end_needs
        told = needs is None or not needs.isdisjoint(self.said)
        return self.node.ends and told and self._is_whole(self.run)

    def _run_after(self, token: int) -> str | None:
        """The digits so far with this token, None where no number of the request goes on like that."""
        if self.numbers is None:
            return ""
        if token not in self.node.digits:
            return "" if self._is_whole(self.run) else None
        spelling = self.spellings[token]
        if spelling.startswith(SPACE) and not self._is_whole(self.run):
            return None
        run = spelling.strip(SPACE) if spelling.startswith(SPACE) else self.run + spelling
        return run if run in self.numbers.begun else None

    def _is_whole(self, run: str) -> bool:
        return not run or self.numbers is None or run in self.numbers.whole
