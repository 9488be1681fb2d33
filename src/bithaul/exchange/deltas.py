"""Deltas between published versions: few bytes from which the very file of the next version is rebuilt.

With P_v the published vector of version v and theta_v the coordinator's float32 one (exchange.md, section 8):

    d   = theta_v - P_(v-1)                       # holds every earlier rounding error, so nothing drifts
    q,s = blocks of whole numbers of d            # `int8-block-v1` or `int4-block-v1`, see `blocks`
    P_v = bf16(float32(P_(v-1)) + q * s)          # `advance`: the same line on both sides

"Full file of v" and "file of v-1 and the delta" are the same bytes with one SHA-256. A product q * s is exact
in float32, so a fused multiply-add gives no other sum; sums below 2^-100 become +0, so no machine's way with
tiny numbers shows. A delta's file is `"BWGD" | i64 version | SHA-256 of the file it starts from | payload`.
Made and applied strip by strip: neither side holds a whole vector for it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bithaul.errors import CorruptFile
from bithaul.exchange.bf16 import Words, from_bf16, to_bf16
from bithaul.exchange.blocks import INT4_BLOCK, INT8_BLOCK, Blocks, pack_halves
from bithaul.exchange.pieces import FloatVector, VectorLayout, read_exactly, strips
from bithaul.exchange.weights import BF16, WeightFormat, weights_head, weights_size, words_of

MAGIC = b"BWGD"
_HEAD = struct.Struct("<4sq32s")
_SMALLEST = np.float32(2.0**-100)
_PIECE = 1_048_576
_CODECS = {codec.name: codec for codec in (INT8_BLOCK, INT4_BLOCK)}


def advance(base: Words, step: FloatVector) -> Words:
    """The next published values: uint16 [n] of uint16 [n] and float32 [n]."""
    moved = from_bf16(base)
    moved += step
    moved[np.abs(moved) < _SMALLEST] = 0.0
    return to_bf16(moved)


def delta_size(layout: VectorLayout, form: WeightFormat) -> int:
    """Length in bytes of a delta's file."""
    return _HEAD.size + _codec(form).encoded_size(layout)


def longest_chain(layout: VectorLayout, form: WeightFormat) -> int:
    """How many deltas in a row are still fewer bytes than the full file."""
    return (weights_size(layout.size, form) - 1) // delta_size(layout, form)


class NextVersion:
    """`pieces` gives the two files of version `version`: its delta, and all of it. Each may be read once."""

    def __init__(
        self,
        version: int,
        theta: FloatVector,
        base: Words,
        *,
        base_sha256: str,
        layout: VectorLayout,
        form: WeightFormat,
    ) -> None:
        """`theta` float32 [n] of the new version, `base` uint16 [n] as published before it."""
        self._version, self._theta, self._base = version, np.asarray(theta), np.asarray(base)
        self._base_sha256, self._layout, self._codec = bytes.fromhex(base_sha256), layout, _codec(form)

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """(bytes of the delta, bytes of the full file), in order. Raises `InvalidInput`: `not_finite`."""
        codec, layout = self._codec, self._layout
        scales = [codec.scales(strip) for _, strip in self._strips()]
        head = _HEAD.pack(MAGIC, self._version, self._base_sha256) + codec.head(layout)
        yield (
            head + np.concatenate(scales).astype("<f2").tobytes(),
            weights_head(self._version, layout.size, BF16),
        )
        half = np.empty(0, np.int8)  # of a byte whose other half the next strip has
        for (offset, strip), scale in zip(self._strips(), scales, strict=True):
            q = codec.quantised(strip, scale)
            step = (q.astype(np.float32) * scale.astype(np.float32)[:, None]).reshape(-1)
            words = advance(self._base[offset : offset + q.size], step)
            way = q.tobytes()
            if codec.halves:
                whole = np.concatenate([half, q.reshape(-1)])
                cut = whole.size - whole.size % 2
                half, way = whole[cut:], pack_halves(whole[:cut]).tobytes()
            yield way, words.astype("<u2", copy=False).tobytes()
        if half.size:
            yield pack_halves(half).tobytes(), b""

    def _strips(self) -> Iterator[tuple[int, FloatVector]]:
        """(place of its first value, float32 [rows, width] of the way to go): whole blocks."""
        for offset, rows, width in strips(self._layout, self._codec.width):
            part = slice(offset, offset + rows * width)
            yield offset, (self._theta[part] - from_bf16(self._base[part])).reshape(rows, width)


def apply_delta(
    base: Path, delta: Path, out: BinaryIO, *, base_sha256: str, layout: VectorLayout, form: WeightFormat
) -> str:
    """Write the full file of the delta's version and return its SHA-256 (hex).

    Raises `CorruptFile` for a delta that is not one of this layout or starts from another file than
    `base_sha256`. Whether `base` really has that SHA-256 is not looked at: it shows in what is returned.
    """
    digest = hashlib.sha256()
    with delta.open("rb") as file:
        if file.seek(0, SEEK_END) != delta_size(layout, form):
            raise CorruptFile(
                f"The delta has {file.tell()} bytes, the layout asks for {delta_size(layout, form)}.",
                code="delta_length",
            )
        file.seek(0)
        magic, version, start = _HEAD.unpack(read_exactly(file, _HEAD.size))
        if magic != MAGIC or version < 0:
            raise CorruptFile(f"The delta begins with {magic!r}, version {version}.", code="delta_magic")
        if start.hex() != base_sha256:
            raise CorruptFile(
                f"The delta starts from {start.hex()[:12]}..., not {base_sha256[:12]}....", code="delta_base"
            )
        words = np.asarray(words_of(base, expected_count=layout.size))
        head = weights_head(version, layout.size, BF16)
        digest.update(head)
        out.write(head)
        for piece in _codec(form).pieces(file, layout, chunk_values=_PIECE):
            before = words[piece.offset : piece.offset + piece.size]
            made = advance(before, piece.values().astype(np.float32, copy=False))
            data = made.astype("<u2", copy=False).data.cast("B")
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def _codec(form: WeightFormat) -> Blocks:
    assert form.delta is not None, f"{form.choice} has no deltas"
    return _CODECS[form.delta]
