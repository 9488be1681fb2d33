"""Reads the `[title]` sections of this package's data files. Blank lines and `#` lines are comments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_FOLDER = files(__package__) / "data"

Sections = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Term:
    """One value and the ways to say it, the most usual first."""

    value: str
    forms: tuple[str, ...]


@cache
def sections(name: str) -> Sections:
    """Titles and lines of a data file, in order; a title may occur more than once."""
    found: list[tuple[str, list[str]]] = []
    for line in (_FOLDER / name).read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            found.append((text[1:-1], []))
        elif text and not text.startswith("#"):
            found[-1][1].append(text)
    return tuple((title, tuple(lines)) for title, lines in found)


def names(suffix: str) -> list[str]:
    """The data files that end so, in order."""
    return sorted(entry.name for entry in _FOLDER.iterdir() if entry.name.endswith(suffix))


def lines(name: str, title: str) -> tuple[str, ...]:
    """The lines of the one section of that title. KeyError: a defect of the package."""
    return dict(sections(name))[title]


def terms(name: str, title: str) -> tuple[Term, ...]:
    """A section of `Value` or `Value = form, form` lines."""
    found = []
    for line in lines(name, title):
        value, _, forms = (part.strip() for part in line.partition("="))
        spoken = tuple(form.strip() for form in forms.split(",")) if forms else (value.lower(),)
        found.append(Term(value, spoken))
    return tuple(found)
