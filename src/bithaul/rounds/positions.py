"""The endless order of examples, and the ledger of which positions are free.

A position counts examples through seeded passes over the corpus: position p belongs to pass p // N. Each
pass visits blocks of neighbouring examples in its own seeded order and every example exactly once. A slice
is a list of spans of positions. Everything is counted in examples, never in bytes.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

BLOCK = 64


@dataclass(frozen=True, order=True)
class Span:
    """`count` positions from `start`."""

    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass(frozen=True)
class Piece:
    """`count` examples of shard number `shard`, from its example `first`."""

    shard: int
    first: int
    count: int


@dataclass(frozen=True)
class Free:
    """Positions nobody has: `returned` below the cursor (disjoint, joined, sorted), and all from it on."""

    cursor: int
    returned: tuple[Span, ...] = ()

    def cut(self, want: int) -> tuple[tuple[Span, ...], Free]:
        """(slice of exactly `want` examples, what stays free): returned spans first, lowest first."""
        if want < 1:
            raise ValueError(f"a slice has at least one example, not {want}")
        taken: list[Span] = []
        rest = list(self.returned)
        cursor = self.cursor
        while want and rest:
            span = rest.pop(0)
            if span.count > want:
                rest.insert(0, Span(span.start + want, span.count - want))
                span = Span(span.start, want)
            taken.append(span)
            want -= span.count
        if want:
            taken.append(Span(cursor, want))
            cursor += want
        return joined(taken), Free(cursor, tuple(rest))

    def give_back(self, spans: Iterable[Span]) -> Free:
        """The spans are free again. ValueError if one is free already or was never cut."""
        back = [s for s in spans if s.count]
        merged = joined([*self.returned, *back])
        if sum(s.count for s in merged) != sum(s.count for s in (*self.returned, *back)) or any(
            s.end > self.cursor or s.start < 0 for s in back
        ):
            raise ValueError("positions were returned that nobody had")
        return Free(self.cursor, merged)


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted, with neighbours and overlaps joined."""
    out: list[Span] = []
    for span in sorted(spans):
        if out and span.start <= out[-1].end:
            out[-1] = Span(out[-1].start, max(out[-1].end, span.end) - out[-1].start)
        else:
            out.append(span)
    return tuple(out)


def split(spans: Sequence[Span], used: int) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """(the first `used` examples of a slice, its tail)."""
    head: list[Span] = []
    tail: list[Span] = []
    for span in spans:
        here = min(span.count, used)
        used -= here
        if here:
            head.append(Span(span.start, here))
        if span.count > here:
            tail.append(Span(span.start + here, span.count - here))
    if used:
        raise ValueError("more examples were used than the slice has")
    return tuple(head), tuple(tail)


def shares(spans: Iterable[Span], each: int) -> tuple[tuple[Span, ...], ...]:
    """A slice as slices of exactly `each` examples, in order; the same as cutting them one after the other.

    ValueError if it does not come out even.
    """
    out: list[tuple[Span, ...]] = []
    share: list[Span] = []
    room = each
    for span in spans:
        start = span.start
        while start < span.end:
            here = min(span.end - start, room)
            share.append(Span(start, here))
            start += here
            room -= here
            if not room:
                out.append(tuple(share))
                share, room = [], each
    if share:
        raise ValueError("the slice is no whole number of shares")
    return tuple(out)


def pieces(
    spans: Iterable[Span], *, shard_sizes: Sequence[int], seed: int, block: int = BLOCK
) -> list[Piece]:
    """Where the examples of a slice lie, in order; neighbours are joined.

    `shard_sizes` are examples per shard. Raises ValueError for an empty corpus.
    """
    total = sum(shard_sizes)
    if total < 1 or block < 1:
        raise ValueError("there are no examples to order")
    borders = [0, *accumulate(shard_sizes)]
    out: list[Piece] = []
    for span in spans:
        position = span.start
        while position < span.end:
            first, count = _example(position, total=total, block=block, seed=seed)
            count = min(count, span.end - position)
            position += count
            while count:
                shard = bisect_right(borders, first) - 1
                here = min(count, borders[shard + 1] - first)
                _append(out, Piece(shard, first - borders[shard], here))
                first += here
                count -= here
    return out


def _append(out: list[Piece], piece: Piece) -> None:
    last = out[-1] if out else None
    if last is not None and last.shard == piece.shard and last.first + last.count == piece.first:
        out[-1] = Piece(last.shard, last.first, last.count + piece.count)
    else:
        out.append(piece)


def _example(position: int, *, total: int, block: int, seed: int) -> tuple[int, int]:
    """(example number at `position`, how many examples follow in its block, itself included)."""
    epoch, offset = divmod(position, total)
    blocks = -(-total // block)
    order, place = _order(seed, epoch, blocks)
    short = total - (blocks - 1) * block  # length of the last block, which lies at `place` in this pass
    if offset < place * block:
        slot, inside = divmod(offset, block)
    elif offset < place * block + short:
        slot, inside = place, offset - place * block
    else:
        slot, inside = divmod(offset + block - short, block)
    number = order[slot]
    return number * block + inside, (short if number == blocks - 1 else block) - inside


@lru_cache(maxsize=16)
def _order(seed: int, epoch: int, blocks: int) -> tuple[tuple[int, ...], int]:
    """(blocks in the order of this pass, place of the last block). Sorted by hash: the same everywhere."""
    prefix = f"{seed}/{epoch}/".encode()
    order = tuple(
        sorted(
            range(blocks),
            key=lambda b: hashlib.blake2b(prefix + b.to_bytes(8, "big"), digest_size=16).digest(),
        )
    )
    return order, order.index(blocks - 1)
