"""Short pauses of the garbage collector, which stops every thread while it looks through all objects.

What modules, kernels and tables are made of stays for as long as the process lives. Looking through it again
and again was a pause of 0.2 s every ten seconds under a crowd (docs/lab/0017).
"""

from __future__ import annotations

import gc

YOUNG = 10_000  # new objects between looks at the youngest; the interpreter's own choice is 700


def settle() -> None:
    """Collect once, then leave out whatever is here now. For after start-up and after loading kernels."""
    gc.collect()
    gc.freeze()
    _, *older = gc.get_threshold()
    gc.set_threshold(YOUNG, *older)
