"""The order of examples and the ledger of free positions."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.rounds.positions import Free, Piece, Span, joined, pieces, split

corpora = st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(lambda s: sum(s) > 0)


def examples(found: list[Piece]) -> list[tuple[int, int]]:
    return [(p.shard, p.first + i) for p in found for i in range(p.count)]


@given(corpora, st.integers(0, 9), st.integers(1, 20), st.integers(0, 3))
def test_each_pass_visits_every_example_exactly_once(
    sizes: list[int], seed: int, block: int, epoch: int
) -> None:
    """Catches dropped tails, doubled borders and a short block at the wrong place."""
    total = sum(sizes)
    found = pieces([Span(epoch * total, total)], shard_sizes=sizes, seed=seed, block=block)
    expected = {(s, i) for s, size in enumerate(sizes) for i in range(size)}
    counted = Counter(examples(found))
    assert set(counted) == expected
    assert set(counted.values()) == {1}


@given(corpora, st.integers(0, 9), st.integers(1, 20), st.data())
def test_a_slice_does_not_depend_on_where_it_was_cut(
    sizes: list[int], seed: int, block: int, data: st.DataObject
) -> None:
    """Catches an order that differs between one long slice and two short ones, across passes too."""
    count = 3 * sum(sizes)
    border = data.draw(st.integers(1, count - 1))
    whole = pieces([Span(0, count)], shard_sizes=sizes, seed=seed, block=block)
    parts = [
        *pieces([Span(0, border)], shard_sizes=sizes, seed=seed, block=block),
        *pieces([Span(border, count - border)], shard_sizes=sizes, seed=seed, block=block),
    ]
    assert examples(whole) == examples(parts)


def test_passes_and_seeds_differ() -> None:
    """Catches an order that ignores its seed or repeats itself in every pass."""
    first = examples(pieces([Span(0, 400)], shard_sizes=[400], seed=1, block=8))
    again = examples(pieces([Span(0, 400)], shard_sizes=[400], seed=1, block=8))
    second = examples(pieces([Span(400, 400)], shard_sizes=[400], seed=1, block=8))
    other = examples(pieces([Span(0, 400)], shard_sizes=[400], seed=2, block=8))
    assert first == again
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


def test_the_order_never_changes_between_releases() -> None:
    """A golden value: a run that is resumed with a newer bithaul must go on in the same order."""
    found = pieces([Span(0, 9)], shard_sizes=[5, 7], seed=7, block=3)
    assert found == GOLDEN


GOLDEN = [Piece(1, 4, 3), Piece(0, 0, 5), Piece(1, 0, 1)]


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        pieces([Span(0, 1)], shard_sizes=[0, 0], seed=0)


@given(st.lists(st.tuples(st.sampled_from("cug"), st.integers(1, 30)), max_size=60), st.integers(0, 2**16))
def test_every_position_is_at_one_place(moves: list[tuple[str, int]], seed: int) -> None:
    """The ledger's invariant: below the cursor each position is free or held, never both, never neither."""
    choose = random.Random(seed)
    free = Free(0)
    held: list[tuple[Span, ...]] = []
    done: list[Span] = []
    for move, number in moves:
        if move == "c":
            taken, free = free.cut(number)
            assert sum(s.count for s in taken) == number
            held.append(taken)
        elif held:
            task = held.pop(choose.randrange(len(held)))
            size = sum(s.count for s in task)
            used, tail = split(task, min(size, number) if move == "u" else 0)
            done += used
            free = free.give_back(tail)
        places = Counter(
            p for s in (*free.returned, *done, *(s for t in held for s in t)) for p in range(s.start, s.end)
        )
        assert places == Counter(range(free.cursor))
        assert free.returned == joined(free.returned)


def test_returned_positions_come_first() -> None:
    """Catches a cursor that runs on while returned examples are never trained."""
    taken, free = Free(0).cut(100)
    free = free.give_back([Span(10, 5), Span(40, 10)])
    again, free = free.cut(20)
    assert again == (Span(10, 5), Span(40, 10), Span(100, 5))
    assert free == Free(105, ())
    assert taken == (Span(0, 100),)


@pytest.mark.parametrize("span", [Span(0, 101), Span(99, 2)])
def test_returning_what_was_never_cut_is_a_defect(span: Span) -> None:
    _, free = Free(0).cut(100)
    with pytest.raises(ValueError, match="nobody had"):
        free.give_back([span])


def test_returning_twice_is_a_defect() -> None:
    _, free = Free(0).cut(100)
    free = free.give_back([Span(5, 5)])
    with pytest.raises(ValueError, match="nobody had"):
        free.give_back([Span(8, 1)])
