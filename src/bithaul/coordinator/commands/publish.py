"""What workers fetch of a version, made from the float32 vector that the coordinator keeps to itself.

The first version and one that a rollback made are theta rounded. With deltas, those that a step made are the
version before plus a delta (`exchange.deltas`), so both files are made here together.
"""

from __future__ import annotations

from dataclasses import dataclass

from bithaul.coordinator.blobs.store import BlobRef
from bithaul.coordinator.context import Coordinator
from bithaul.exchange.deltas import NextVersion
from bithaul.exchange.pieces import VectorLayout
from bithaul.exchange.weights import (
    FP32,
    FloatVector,
    WeightFormat,
    open_weights,
    weights_pieces,
    words_of,
)


@dataclass(frozen=True)
class Published:
    """`weights` is what workers fetch, `theta` float32; the same blob when nothing is rounded.

    `delta` leads to `weights` from the version before.
    """

    weights: BlobRef
    theta: BlobRef
    delta: BlobRef | None = None


def publish(c: Coordinator, theta: FloatVector, *, version: int, form: WeightFormat) -> Published:
    """Both blobs of `theta`, float32 [parameters], durable. Raises `InvalidInput`, `OutOfDisk`."""
    kept = c.blobs.put(weights_pieces(version, theta), name=c.ids.nonce())
    if form is FP32:
        return Published(kept, kept)
    return Published(c.blobs.put(weights_pieces(version, theta, form), name=c.ids.nonce()), kept)


def publish_step(
    c: Coordinator, theta: BlobRef, *, before: BlobRef, version: int, layout: VectorLayout, form: WeightFormat
) -> Published:
    """Full file and delta of a version whose theta is durable, from what was published before it.

    Raises `InvalidInput` for what is not finite, `CorruptFile` for a damaged file, `OutOfDisk`.
    """
    c.blobs.verify(before.sha256)
    made = NextVersion(
        version,
        open_weights(theta.path, expected_count=layout.size).vector,
        words_of(before.path, expected_count=layout.size),
        base_sha256=before.sha256,
        layout=layout,
        form=form,
    )
    with c.blobs.receive(c.ids.nonce()) as delta, c.blobs.receive(c.ids.nonce()) as weights:
        for way, values in made.pieces():
            delta.write(way)
            weights.write(values)
        return Published(c.blobs.keep(weights), theta, c.blobs.keep(delta))
