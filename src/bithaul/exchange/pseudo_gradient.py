"""The pseudo-gradient: the one place where the sign and the precision of an update are decided.

`u = theta_start - theta_end`, so that *subtracting* u moves the coordinator where the worker went. A lossless
codec gets u in float64, which holds the difference of two float32 numbers exactly; in float32 it cannot be
held when a weight ends much nearer to zero than it began.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt

from bithaul.exchange.pieces import Codec, Values, VectorLayout

FloatVector = npt.NDArray[np.float32]
_STRIP = 1_048_576


def pseudo_gradient(start: FloatVector, end: FloatVector, *, exact: bool) -> Values:
    """start - end, float32 [P], or float64 [P] when `exact`.

    With `exact`, `float32(start - u) == end` holds to the bit, computed in float64, unless a weight shrinks
    in one task by more than a factor of 2**28 without becoming zero. Equal vectors give exactly zero.
    """
    if exact:
        return np.subtract(start, end, dtype=np.float64)
    return np.subtract(start, end, dtype=np.float32)


def encode_with_feedback(
    codec: Codec, u: Values, residual: FloatVector | None, layout: VectorLayout
) -> tuple[bytearray, FloatVector | None]:
    """(payload, next residual) of `u + decay * residual`; error feedback of exchange.md §4.

    `u` is overwritten, the decay is the codec's. The next residual is that sum less `decode(payload)` and
    becomes valid only when the coordinator has accepted the payload. Lossless codecs have none.
    """
    if codec.lossless:
        return codec.encode(u, layout), None
    if residual is not None:
        u += residual if codec.residual_decay == 1.0 else np.float32(codec.residual_decay) * residual
    payload = codec.encode(u, layout)
    for piece in codec.pieces(BytesIO(payload), layout, chunk_values=_STRIP):
        u[piece.offset : piece.offset + piece.size] -= piece.values()
    return payload, np.asarray(u, np.float32)
