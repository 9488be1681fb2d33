"""Where the largest values of sparse updates stand, remembered for the last ones that were looked at.

In memory only and bounded: what is not remembered, after a restart too, is read again from the payload.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
MOST = 256  # updates, 32 KiB each


class Lookalikes:
    """Thread-safe; two threads may read the same payload at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[str, Places] = OrderedDict()

    def of(self, sha256: str, read: Callable[[], Places]) -> Places:
        """Those of the payload file with that SHA-256."""
        with self._lock:
            if sha256 in self._found:
                self._found.move_to_end(sha256)
                return self._found[sha256]
        places = read()
        with self._lock:
            self._found[sha256] = places
            while len(self._found) > MOST:
                self._found.popitem(last=False)
        return places
