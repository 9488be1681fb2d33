"""Compute the next weights from stored files to stored files, slice by slice.

Memory holds one slice of theta, momentum and sum and one decoded slice per update, whatever the model's
size. The result depends only on the base, the updates and their order, so a flush that was cut off is
repeated bit for bit. Nothing here touches the database.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from bithaul.coordinator.blobs.store import BlobRef, Incoming
from bithaul.coordinator.commands.publish import Published, publish_step
from bithaul.coordinator.context import Coordinator
from bithaul.errors import CorruptFile, InvalidInput
from bithaul.exchange.frame import read_header
from bithaul.exchange.pieces import Codec, Piece
from bithaul.exchange.weights import FP32, FloatVector, WeightFormat, weights_head, weights_size
from bithaul.model.layout import Layout
from bithaul.rounds.aggregate import PRODUCT_VALUES, Products, Wide
from bithaul.rounds.merging import MergeRule, Plan, Room, one_plain_step, step

MOST_OPEN = 100  # files of updates; with more, each is opened for each read
CHUNK_VALUES = 65_536  # the vectors of a slice stay in the second-level cache
OF_ONE_UPDATE = 524_288  # which needs no vector for its sum: fewer slices cost less


@dataclass(frozen=True)
class Merged:
    """The next version's blobs, durable and verified; `step_norm` is |theta_new - theta_old|.

    `weights` is what workers fetch; the same blob as `theta` when nothing is rounded.
    """

    plan: Plan
    weights: BlobRef
    theta: BlobRef
    momentum: BlobRef | None
    step_norm: float
    delta: BlobRef | None = None  # from what was published before to `weights`
    products: Wide | None = None  # inner products of momentum and updates, where they were computed


def flush(
    c: Coordinator,
    *,
    rule: MergeRule,
    codec: Codec,
    layout: Layout,
    version: int,
    base: BlobRef,
    momentum: BlobRef | None,
    updates: Sequence[BlobRef],
    plan: Callable[[Wide | None], Plan],
    weights: WeightFormat = FP32,
    before: BlobRef | None = None,
    products_wanted: bool = False,
    chunk_values: int | None = None,
) -> Merged:
    """Write theta, momentum and published weights of `version` from those of its base.

    `base` is the base's theta, `before` what was published of it (for deltas). Raises `CorruptFile` for a
    damaged input, `OutOfDisk`.

    `plan` gets the inner products of the updates if the rule needs them or they are wanted, which takes a
    pass of its own.
    `chunk_values` (None: what is fast) bounds memory and does not change a bit of the result.
    """
    for update in updates:
        c.blobs.verify(update.sha256)
    products = None
    if products_wanted or rule.needs_products(len(updates)):
        products = _products(momentum, updates, codec, layout)
    numbers = plan(products)
    if chunk_values is None:
        chunk_values = OF_ONE_UPDATE if one_plain_step(numbers) else CHUNK_VALUES
    square = 0.0
    with ExitStack() as stack:
        thetas = _vector(stack, base, layout.size, chunk_values)
        momenta = _vector(stack, momentum, layout.size, chunk_values) if momentum is not None else None
        updates_read = _pieces(stack, updates, codec, layout, chunk_values)
        out = stack.enter_context(c.blobs.receive(c.ids.nonce()))
        out.write(weights_head(version, layout.size))
        out_weights: Incoming | None = None
        if weights is not FP32 and weights.delta is None:
            out_weights = stack.enter_context(c.blobs.receive(c.ids.nonce()))
            out_weights.write(weights_head(version, layout.size, weights))
        out_momentum: Incoming | None = None
        if rule.momentum:
            out_momentum = stack.enter_context(c.blobs.receive(c.ids.nonce()))
            out_momentum.write(weights_head(version, layout.size))
        room = Room(min(chunk_values, layout.size))
        half = False
        done = 0
        for theta in thetas:
            carried = next(momenta) if momenta is not None else None
            moved = step(numbers, theta, carried, (next(u) for u in updates_read), room=room)
            if not math.isfinite(moved.square):
                raise _not_finite()
            out.write(moved.theta.astype("<f4", copy=False).data.cast("B"))
            if out_weights is not None:
                try:
                    out_weights.write(weights.encode(moved.theta))
                except InvalidInput as error:
                    raise _not_finite() from error
            if out_momentum is not None and moved.momentum is not None:
                out_momentum.write(moved.momentum.astype("<f4", copy=False).data.cast("B"))
            square += moved.square
            done += theta.size
            if not half and done * 2 >= layout.size:
                c.crash_points.hit("flush.blob_half")
                half = True
        next(thetas, None)  # lets the base compare its hash
        if momenta is not None:
            next(momenta, None)
        theta_kept = c.blobs.keep(out)
        published = Published(theta_kept if out_weights is None else c.blobs.keep(out_weights), theta_kept)
        if weights.delta is not None:
            assert before is not None, "a delta starts from what was published before"
            try:
                published = publish_step(
                    c, theta_kept, before=before, version=version, layout=layout, form=weights
                )
            except InvalidInput as error:
                raise _not_finite() from error
        c.crash_points.hit("flush.blob_written")
        kept = c.blobs.keep(out_momentum) if out_momentum is not None else None
        c.crash_points.hit("flush.snapshot_written")
    return Merged(numbers, published.weights, theta_kept, kept, math.sqrt(square), published.delta, products)


def _not_finite() -> CorruptFile:
    return CorruptFile("Merging gives values that are not finite; no version was made.", code="merge")


def _products(momentum: BlobRef | None, updates: Sequence[BlobRef], codec: Codec, layout: Layout) -> Wide:
    """In pieces of a fixed size: sums of another size would differ in their last bits."""
    total = Products(len(updates))
    with ExitStack() as stack:
        momenta = _vector(stack, momentum, layout.size, PRODUCT_VALUES) if momentum is not None else None
        read = _pieces(stack, updates, codec, layout, PRODUCT_VALUES)
        for pieces in zip(*read, strict=True):
            total.add(next(momenta) if momenta is not None else None, pieces)
    return total.matrix


def _vector(stack: ExitStack, blob: BlobRef, count: int, chunk: int) -> Iterator[FloatVector]:
    """Slices of a stored vector; its SHA-256 is compared when the last one has been used."""
    file = stack.enter_context(blob.path.open("rb"))
    if blob.size != weights_size(count):
        raise CorruptFile(f"{blob.path} has {blob.size} bytes instead of {weights_size(count)}.")
    return _slices(file, blob, count, chunk)


def _slices(file: BinaryIO, blob: BlobRef, count: int, chunk: int) -> Iterator[FloatVector]:
    digest = hashlib.sha256(file.read(weights_size(0)))
    for start in range(0, count, chunk):
        piece = file.read(4 * min(chunk, count - start))
        digest.update(piece)
        yield np.frombuffer(piece, "<f4")
    if digest.hexdigest() != blob.sha256:
        raise CorruptFile(f"{blob.path} does not have its SHA-256; restore it from a backup.")


def _pieces(
    stack: ExitStack, updates: Sequence[BlobRef], codec: Codec, layout: Layout, chunk: int
) -> list[Iterator[Piece]]:
    found = []
    for update in updates:
        file: BinaryIO = (
            stack.enter_context(update.path.open("rb"))
            if len(updates) <= MOST_OPEN
            else cast(BinaryIO, Reopened(update.path))
        )
        read_header(file)
        found.append(codec.pieces(file, layout, chunk_values=chunk))
    return found


class Reopened(io.RawIOBase):
    """Reads as an open file does, and has none open between two reads.

    A thousand workers report in one round; a process may have far fewer files open at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._at)
            count = file.readinto(buffer)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._path.stat().st_size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at
