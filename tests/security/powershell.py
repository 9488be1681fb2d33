"""Reads PowerShell as its language specification says, as far as the install lines need it, and no further.

Written from "Windows PowerShell Language Specification 3.0" (2.2.2 white space, 2.3.5.2 string literals) and
its tokenizer's character classes, not from the code that writes the lines. What it does not know (a pipe, a
second statement on a line, a script block, an escape) raises `NotUnderstood`: text that gets out of its
quotes cannot pass for data. It is no PowerShell: how a Windows program splits its command line is not in it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

SINGLE = "'\u2018\u2019\u201a\u201b"  # single-quote-character
DOUBLE = '"\u201c\u201d\u201e'  # double-quote-character
_SPECIAL = set(";|&`{}()[],@#<>%=!?*~^") | {"\0"}


class NotUnderstood(Exception):
    pass


@dataclass
class Read:
    """What would happen: variables of the environment that are set, and commands with their arguments."""

    environment: dict[str, str] = field(default_factory=dict)
    calls: list[list[str]] = field(default_factory=list)


def read(text: str, *, home: str = "C:\\Users\\me") -> Read:
    reader, found = _Reader(text, home), Read()
    while not reader.at_end():
        if reader.take_newlines():
            continue
        reader.statement(found)
    return found


class _Reader:
    def __init__(self, text: str, home: str) -> None:
        self._text, self._at, self._home = text, 0, home

    def at_end(self) -> bool:
        return self._at >= len(self._text)

    def peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def get(self) -> str:
        if self.at_end():
            raise NotUnderstood("the text ends inside of something")
        letter = self._text[self._at]
        self._at += 1
        return letter

    def take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def take_newlines(self) -> bool:
        self.skip_blanks()
        began = self._at
        while self.peek() and self.peek() in "\r\n":
            self.get()
            self.skip_blanks()
        return self._at > began

    def skip_blanks(self) -> None:
        while self.peek() and _is_blank(self.peek()):
            self.get()

    def statement(self, found: Read) -> None:
        if self.take("$env:"):
            name = self._name()
            self.skip_blanks()
            if not self.take("="):
                raise NotUnderstood("only assignments begin with a variable")
            self.skip_blanks()
            found.environment[name] = self.word(first=False)
        else:
            called = self.take("&")
            self.skip_blanks()
            words = [self.word(first=not called)]
            while self.skip_blanks() or (self.peek() and self.peek() not in "\r\n"):
                words.append(self.word(first=False))
            found.calls.append(words)
        self.skip_blanks()
        if self.peek() and self.peek() not in "\r\n":
            raise NotUnderstood(f"{self.peek()!r} after a statement")

    def word(self, *, first: bool) -> str:
        """A quoted string, or letters up to the next blank. A command's name without `&` is never quoted."""
        letter = self.peek()
        if letter and letter in SINGLE + DOUBLE:
            if first:
                raise NotUnderstood("a string is no command")
            self.get()
            value = self._verbatim() if letter in SINGLE else self._expandable()
            if self.peek() and not _is_blank(self.peek()) and self.peek() not in "\r\n)":
                raise NotUnderstood("a string and what touches it are two arguments, or one, or none")
            return value
        value = ""
        while self.peek() and not _is_blank(self.peek()) and self.peek() not in "\r\n":
            letter = self.get()
            if letter in _SPECIAL or letter in SINGLE + DOUBLE or letter == "$":
                raise NotUnderstood(f"{letter!r} outside of quotes")
            value += letter
        if not value:
            raise NotUnderstood("nothing where a word should be")
        return value

    def _verbatim(self) -> str:
        """2.3.5.2.1: everything is itself but two single quotes, of any of the five kinds, which are one."""
        value = ""
        while (letter := self.get()) not in SINGLE or (self.peek() and self.peek() in SINGLE):
            value += self.get() if letter in SINGLE else letter
        return value

    def _expandable(self) -> str:
        """2.3.5.2.2: variables and $(...) are replaced."""
        value = ""
        while (letter := self.get()) not in DOUBLE:
            if letter == "`":
                raise NotUnderstood("an escape")
            if letter != "$":
                value += letter
            elif self.take("("):
                value += self.word(first=False)
                if self.get() != ")":
                    raise NotUnderstood("more than a string in $(...)")
            elif self._name() == "HOME":
                value += self._home
            else:
                raise NotUnderstood("a variable that is not HOME")
        return value

    def _name(self) -> str:
        name = ""
        while self.peek() and (self.peek().isalnum() or self.peek() == "_"):
            name += self.get()
        return name


def _is_blank(letter: str) -> bool:
    return letter in "\t\v\f\x85" or unicodedata.category(letter) in ("Zs", "Zl", "Zp")
