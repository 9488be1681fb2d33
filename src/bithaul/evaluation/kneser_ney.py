"""The n-gram floor of a perplexity: interpolated modified Kneser-Ney over a closed vocabulary.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998), section 3: three
discounts per order from the counts of counts, continuation counts below the highest order, and a uniform
distribution over the vocabulary below single tokens. Text is one stream of token ids; the end of a line is a
token like any other and contexts run across it. An n-gram is the number of its first n - 1 tokens among the
distinct ones, times V, plus its last token, so every table is one sorted int64 array: two million tokens take
about two seconds and 400 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bithaul.errors import InvalidInput

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_FALLBACK = (0.5, 1.0, 1.5)  # discounts where counts of counts give none, as in KenLM


@dataclass(frozen=True)
class _Order:
    """All n-grams of one length. Contexts are numbered as the n-grams of the order below; order 1 has one."""

    keys: Ids  # [G] sorted: context number * V + last token
    kept: Floats  # [G] count less its discount
    totals: Floats  # [C] counts of a context
    freed: Floats  # [C] discounts of a context, what the order below shares out


@dataclass(frozen=True)
class KneserNey:
    """A fitted model. Make one with `fit`."""

    vocab_size: int
    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, tokens: npt.NDArray[np.integer], *, vocab_size: int, order: int = 4) -> KneserNey:
        """Count the stream `tokens` (ids [N] below `vocab_size`).

        Raises `InvalidInput` for an id outside the vocabulary or a stream of fewer than `order` tokens.
        """
        ids = _checked(tokens, vocab_size)
        if order < 1 or len(ids) < order:
            raise InvalidInput(f"A {order}-gram model needs at least {max(order, 1)} tokens to learn from.")
        found = [_distinct(ids)]
        for n in range(2, order + 1):
            found.append(_distinct(found[-1].at[:-1] * vocab_size + ids[n - 1 :]))
        orders = []
        for n, grams in enumerate(found, start=1):
            if n == order:
                counts = grams.counts
            else:  # in how many distinct longer n-grams it is the end: what stands in front of it, once each
                ends = grams.at[found[n].first + 1]
                counts = np.bincount(ends, minlength=len(grams.keys))
            contexts = grams.keys // vocab_size if n > 1 else np.zeros_like(grams.keys)
            number = len(found[n - 2].keys) if n > 1 else 1
            orders.append(_order(grams.keys, counts, contexts, number))
        return cls(vocab_size, tuple(orders))

    def probabilities(self, tokens: npt.NDArray[np.integer]) -> Floats:
        """Of each token of a stream after all before it, float64 [N]; they sum to 1 over the vocabulary."""
        ids = _checked(tokens, self.vocab_size)
        found = np.full(len(ids), 1.0 / self.vocab_size)
        grams = np.zeros(len(ids), dtype=np.int64)  # number of the n-gram that ends here, -1: never seen
        for n, table in enumerate(self.orders, start=1):
            contexts = np.zeros_like(grams) if n == 1 else np.concatenate([[-1], grams[:-1]])
            keys = contexts * self.vocab_size + ids
            places = np.searchsorted(table.keys, keys).clip(max=len(table.keys) - 1)
            seen = (table.keys[places] == keys) & (contexts >= 0)
            known = (contexts >= 0) & (table.totals[contexts] > 0)
            share = np.where(seen, table.kept[places], 0.0) + table.freed[contexts] * found
            found = np.where(known, share / np.where(known, table.totals[contexts], 1.0), found)
            grams = np.where(seen, places, -1)
        return found


@dataclass(frozen=True)
class _Grams:
    """The distinct n-grams of a stream, and which one starts at each place."""

    keys: Ids
    first: Ids  # [G] a place where it starts
    at: Ids  # [N - n + 1]
    counts: Ids


def _distinct(keys: Ids) -> _Grams:
    unique, first, at, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return _Grams(unique, first.astype(np.int64), at.astype(np.int64), counts.astype(np.int64))


def _order(keys: Ids, counts: Ids, contexts: Ids, number: int) -> _Order:
    taken = np.minimum(np.array((0.0, *_discounts(counts)))[np.minimum(counts, 3)], counts)
    return _Order(
        keys,
        counts - taken,
        np.bincount(contexts, counts, minlength=number).astype(np.float64),
        np.bincount(contexts, taken, minlength=number).astype(np.float64),
    )


def _discounts(counts: Ids) -> Sequence[float]:
    """What counts of 1, 2, and 3 or more lose (equation 17 of the paper)."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if 0 in (n1, n2, n3):
        return _FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 < d <= k for k, d in enumerate(found, start=1)) else _FALLBACK


def _checked(tokens: npt.NDArray[np.integer], vocab_size: int) -> Ids:
    ids = np.asarray(tokens, dtype=np.int64)
    if ids.ndim != 1 or (len(ids) and (ids.min() < 0 or ids.max() >= vocab_size)):
        raise InvalidInput(f"Tokens must be one row of ids from 0 to {vocab_size - 1}.")
    return ids
