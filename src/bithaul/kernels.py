"""Loops that compiled functions of several folders call; each is inlined where it is called."""

from __future__ import annotations

import numpy as np

from bithaul.compiled import compiled


@compiled({"nsz", "reassoc"})
def square_distance(theta, new):
    """|new - theta|^2 of two float32 [n], in float64, added up in the order that is fastest."""
    total = np.float64(0.0)
    for j in range(theta.shape[0]):
        moved = np.float64(new[j]) - np.float64(theta[j])
        total += moved * moved
    return total
