"""numba's compiler as this package uses it: no lock, no checks, machine code kept on disk.

Compiled functions take and give plain arrays and stand in modules of their own (`kernels`, `integer`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba

STRICT: set[str] = set()
"""The same bits on every machine: nothing is contracted into one rounding, nothing reordered."""

EXACT = {"contract", "nsz"}
"""The written order of operations, but a product and a sum may be rounded once."""

SUMS = {"contract", "nsz", "reassoc"}
"""For plain sums, which may be reordered."""

_SHARED = Path(__file__).parent
"""Where the flags are, which numba does not look at either, and loops that several folders call."""


def compiled(flags: set[str]) -> Callable[[Any], Any]:
    """numba's compiler, keeping machine code on disk where a folder can be written."""

    def wrap(function: Any) -> Any:
        options: dict[str, Any] = {"nogil": True, "fastmath": flags, "error_model": "numpy"}
        try:
            with _folder_of_these_sources(Path(function.__code__.co_filename).parent):
                return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no writable folder: compiled anew in every process
            return numba.njit(**options)(function)

    return wrap


@contextmanager
def _folder_of_these_sources(room: Path) -> Iterator[None]:
    """Machine code is kept by the text of a room's compiled files: numba looks at a function's own only.

    Its functions call those of the others, which would go on being used after they were changed.
    """
    config = vars(numba.config)
    before = config["CACHE_DIR"]
    folder = Path(before) if before else room / "__pycache__"
    config["CACHE_DIR"] = str(folder / f"kernels-{sources_digest(room)}")
    try:
        yield
    finally:
        config["CACHE_DIR"] = before


@functools.cache
def sources_digest(room: Path) -> str:
    """Of every file in the folder that numba compiles, and of those that all folders share."""
    texts = [file.read_bytes() for place in (room, _SHARED) for file in sorted(place.glob("*.py"))]
    return hashlib.sha256(b"\0".join(t for t in texts if b"numba" in t or b"compiled" in t)).hexdigest()[:12]
