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
from numba.core.codegen import get_host_cpu_features

STRICT: set[str] = set()
"""The same bits on every machine: nothing is contracted into one rounding, nothing reordered."""

EXACT = {"contract", "nsz"}
"""The written order of operations, but a product and a sum may be rounded once."""

SUMS = {"contract", "nsz", "reassoc"}
"""For plain sums, which may be reordered."""

_SHARED = Path(__file__).parent
"""Where the flags are, which numba does not look at either, and loops that several folders call."""


def _use_whole_vectors() -> None:
    """512 bits where AVX-512 came with 16-bit floats, Intel's servers of 2023 on.

    For these too the compiler prefers 256 bits, as their forebears slowed down with more; the passes of a
    step take 10 to 25 % less so (docs/lab/0023). Set before anything is compiled; the user's own choice of
    features stays.
    """
    features: Callable[[], str] = get_host_cpu_features
    host, config = features(), vars(numba.config)
    if config["CPU_FEATURES"] is None and "+avx512fp16" in host.split(","):
        config["CPU_FEATURES"] = f"{host},-prefer-256-bit"


_use_whole_vectors()


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
