"""Codecs of updates by name: a pseudo-gradient vector to bytes and back, chosen per run.

Every codec has a size that follows from the layout alone, refuses what it cannot carry, and checks magic,
count and length before it allocates anything. It does not know about frames, tasks or residuals. The formats
stand in `floats`, `blocks` and `sparse`, the protocol in `pieces`.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from itertools import chain
from types import MappingProxyType

import numpy as np

from bithaul.errors import UnknownName
from bithaul.exchange.blocks import INT4_BLOCK, INT8_BLOCK, Int8Ef
from bithaul.exchange.floats import Bf16, Fp32
from bithaul.exchange.pieces import Codec, FloatVector, VectorLayout
from bithaul.exchange.sparse import TopK

CODECS: Mapping[str, Codec] = MappingProxyType(
    {c.name: c for c in (INT8_BLOCK, INT4_BLOCK, TopK(), Int8Ef(), Bf16(), Fp32())}
)


def codec_named(name: str) -> Codec:
    """The codec of that name; `UnknownName` lists the known ones."""
    if name not in CODECS:
        raise UnknownName(f"There is no codec {name!r}; the codecs are {', '.join(CODECS)}.")
    return CODECS[name]


def decode(codec: Codec, payload: bytes | bytearray | memoryview, layout: VectorLayout) -> FloatVector:
    """The whole vector as float32 [layout.size]."""
    pieces = codec.pieces(BytesIO(payload), layout)
    first = next(pieces, None)  # all checks run before the vector is allocated
    out = np.empty(layout.size, np.float32)
    for piece in chain([first] if first is not None else [], pieces):
        out[piece.offset : piece.offset + piece.size] = piece.values()
    return out
