"""What people and clients may be called: 64 letters of a small alphabet, and like nobody else in the log.

The audit log's actors are people, clients, and a few that are neither. Who is new cannot have a name of
these; who had one before this was so keeps it.
"""

from __future__ import annotations

import re
from typing import Final

ACTORS: Final = frozenset({"cli", "system", "oidc"})
"""The machine's owner at its command line, the program itself, and the foreign provider."""

CLIENTS_OF_OURS: Final = frozenset({"bithaul-admin", "up"})
"""Clients that the program makes for itself: no person may pass for one."""

TAKEN: Final = "stands for no person in the audit log; choose another name"

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def is_for_people(name: str) -> bool:
    """Whether a new person may have this name."""
    return name not in ACTORS | CLIENTS_OF_OURS
