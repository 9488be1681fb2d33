"""What workers fetch of a version, made from the float32 vector that the coordinator keeps to itself."""

from __future__ import annotations

from dataclasses import dataclass

from bithaul.coordinator.blobs.store import BlobRef
from bithaul.coordinator.context import Coordinator
from bithaul.exchange.weights import FP32, FloatVector, WeightFormat, weights_pieces


@dataclass(frozen=True)
class Published:
    """`weights` is what workers fetch, `theta` float32; the same blob when nothing is rounded."""

    weights: BlobRef
    theta: BlobRef


def publish(c: Coordinator, theta: FloatVector, *, version: int, form: WeightFormat) -> Published:
    """Both blobs of `theta`, float32 [parameters], durable. Raises `InvalidInput`, `OutOfDisk`."""
    kept = c.blobs.put(weights_pieces(version, theta), name=c.ids.nonce())
    if form is FP32:
        return Published(kept, kept)
    return Published(c.blobs.put(weights_pieces(version, theta, form), name=c.ids.nonce()), kept)
