"""What must hold before a coordinator serves: the newest version reads back and fits the run's model.

Refuses to start with a sentence otherwise, and never makes new weights by itself.
"""

from __future__ import annotations

from bithaul.coordinator.context import Coordinator


def check_run(c: Coordinator) -> None:
    """Raises `CorruptFile` or `LayoutMismatch`. Clears unfinished uploads and orphan blobs. No run: fine."""
    raise NotImplementedError
