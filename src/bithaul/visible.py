"""Words of others made harmless for eyes and terminals: what cannot be seen is spelled out.

A carriage return, an escape sequence or a mark that turns the direction of text can make a line say something
else than it does. Such letters become `\\r`, `\\x1b`, `\\u202e`. Letters of every script, all kinds of spaces
and the two joiners that scripts need stay as they are.
"""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"


def visible(text: str, *, keep: str = "") -> str:
    """`text` on one line, without letters that act instead of being seen; those in `keep` stay."""
    if text.isprintable():
        return text
    stays = _JOINERS + keep
    return "".join(letter if _seen(letter) or letter in stays else _spelled(letter) for letter in text)


def _seen(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"


def _spelled(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
