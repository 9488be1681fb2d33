"""Secrets that rest in files, not in the database: the pepper of client secrets, the key over signing keys.

A file is created once, with mode 0600 in a folder of mode 0700, and is never overwritten: losing it would
make every issued secret void. A file that others can read is refused with a sentence that says what to do.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from bithaul.errors import CorruptFile, InvalidConfig

RandomBytes = Callable[[int], bytes]

PEPPER = "pepper"
KEY_ENCRYPTION_KEY = "signing-key-encryption"
FIRST_PASSWORD = "first-admin-password"  # noqa: S105 - the name of a file
SIZE = 32


def urlsafe(value: bytes) -> str:
    """Base64 for URLs, cookies and headers, without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def read_or_create(folder: Path, name: str, *, random: RandomBytes = secrets.token_bytes) -> bytes:
    """The 32 bytes of secret file `name`; two processes that start together agree on one value."""
    path = folder / name
    if not path.exists():
        _create(path, random(SIZE))
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InvalidConfig(f"{path} can be read by others; run: chmod 600 {path}")
    value = path.read_bytes()
    if len(value) != SIZE:
        raise CorruptFile(f"{path} must hold {SIZE} bytes but holds {len(value)}; restore it from a backup.")
    return value


def _create(path: Path, value: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)  # fails when another process was first: its value counts
        except FileExistsError:
            return
    finally:
        aside.unlink()
    _fsync_folder(path.parent)


def write_note(folder: Path, name: str, text: str) -> Path:
    """A secret a person must read once, in a file of mode 0600; replaces a former one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(aside).replace(folder / name)
    return folder / name


def _fsync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
