"""bfloat16: the upper half of a float32, rounded half to even. Updates and published weights share this.

Whole-number arithmetic on the bits, so the result is the same on every machine, whatever it does with
numbers near zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatVector = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint16]

_NAN = 0x7FC0
_SIZE = 0x7FFF  # without the sign
_INFINITY = 0x7F80


def to_bf16(values: FloatVector) -> Words:
    """uint16 [n] of float32 [n], to the nearest, half to even; what is beyond the range becomes infinity."""
    bits = values.view(np.uint32)
    words = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    words[np.isnan(values)] = _NAN
    return words


def from_bf16(words: Words) -> FloatVector:
    """float32 [n] of uint16 [n], exactly."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def all_finite(words: Words) -> bool:
    return bool((words & _SIZE < _INFINITY).all())
