"""Values as people write them on a command line."""

from __future__ import annotations

import typer

from bithaul.errors import InvalidInput


def tokens(text: str) -> int:
    """A token count as people write it: 3000000, 3e6, 2.5M, 800k."""
    factors = {"k": 1e3, "m": 1e6, "g": 1e9}
    factor = factors.get(text[-1:].lower(), 1.0)
    try:
        value = float(text[:-1] if factor != 1.0 else text) * factor
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number of tokens; write 3000000, 3e6 or 3M.") from None
    if not 1 <= value < 1e15:
        raise typer.BadParameter(f"{text!r} is out of range; a budget is at least one token.")
    return round(value)


def merge_option(text: str) -> tuple[str, float | str]:
    """`mu=0.6` or `aggregator=krum`; which there are is the rule's to say."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InvalidInput(f"{text!r} is not an option of a merge rule; write NAME=VALUE, such as mu=0.6.")
    try:
        return name, float(value)
    except ValueError:
        return name, value
