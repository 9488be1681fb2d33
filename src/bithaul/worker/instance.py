"""Which machine this is, among those that may have the same key: a random number in its state folder.

It outlives the process, also a killed one, so whoever starts again in the same folder is the same to the
coordinator; a second folder is somebody else.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from bithaul.worker.files import move_into_place

_FORM = re.compile(r"[0-9a-f]{32}")


def instance_of(state: Path) -> str:
    """The number in the folder `state`, 32 hex digits; made if there is none, or none that can be read."""
    file = state / "instance"
    try:
        known = file.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        known = ""
    return known if _FORM.fullmatch(known) else _made(file)


def _made(file: Path) -> str:
    number = secrets.token_hex(16)
    aside = file.with_name(".aside-instance")
    with aside.open("w", encoding="ascii") as stream:
        stream.write(number + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    move_into_place(aside, file)
    return number
