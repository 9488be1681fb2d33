"""What an operator may seed: the slices that claims would cut, the reasons against it, the mark."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.rounds.positions import Free, Span, shares
from bithaul.rounds.seeding import MOST_EXAMPLES, MOST_TASKS, SeedingFacts, plan_seeding, usual_examples

FACTS = SeedingFacts(
    free=Free(1000, (Span(40, 10), Span(200, 30))),
    finished=False,
    batch_examples=8,
    tokens_per_example=10.0,
    remaining_tokens=math.inf,
    remaining_seconds=math.inf,
)
frees = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6).map(
    lambda gaps: Free(
        sum(gap + count for gap, count in gaps),
        tuple(Span(sum(g + n for g, n in gaps[:i]) + gap, count) for i, (gap, count) in enumerate(gaps)),
    )
)


@given(frees, st.integers(1, 12), st.integers(1, 12))
def test_a_seeding_cuts_what_as_many_claims_would(free: Free, tasks: int, examples: int) -> None:
    """Catches tasks that overlap, leave a gap, or come in another order than claims cut them."""
    plan = plan_seeding(replace(FACTS, free=free, batch_examples=1), tasks=tasks, examples=examples)
    claimed, left = [], free
    for _ in range(tasks):
        taken, left = left.cut(examples)
        claimed.append(taken)
    assert (plan.slices, plan.free) == (tuple(claimed), left)
    places = Counter(p for s in (*left.returned, *sum(claimed, ())) for p in range(s.start, s.end))
    before = Counter(p for s in free.returned for p in range(s.start, s.end))
    assert places == before + Counter(range(free.cursor, left.cursor))
    assert left.give_back(sum(plan.slices, ())).returned[-1].end == left.cursor


def test_first_and_last_are_of_the_whole_batch() -> None:
    plan = plan_seeding(FACTS, tasks=3, examples=16)
    assert plan.slices[0] == (Span(40, 10), Span(200, 6))
    assert (plan.first, plan.last) == (40, 1007)


def test_shares_that_do_not_come_out_even_are_a_defect() -> None:
    with pytest.raises(ValueError, match="whole number"):
        shares([Span(0, 10)], 4)


def test_the_mark_is_of_these_slices() -> None:
    """Catches a confirmation of something else than what was looked at."""
    plan = plan_seeding(FACTS, tasks=4, examples=8)
    assert plan.mark == plan_seeding(FACTS, tasks=4, examples=8).mark
    moved = replace(FACTS, free=FACTS.free.cut(8)[1])
    elsewhere = replace(FACTS, free=Free(1000, (Span(40, 10), Span(300, 30))))
    others = {
        plan_seeding(elsewhere, tasks=4, examples=8).mark,  # the same beginning
        plan_seeding(moved, tasks=4, examples=8).mark,
        plan_seeding(FACTS, tasks=2, examples=16).mark,  # the same positions in other tasks
        plan_seeding(FACTS, tasks=5, examples=8).mark,
    }
    assert len(others) == 4
    assert plan.mark not in others


@pytest.mark.parametrize(
    ("changes", "tasks", "examples", "says"),
    [
        ({}, 0, 8, "tasks from 1 to 10,000"),
        ({}, MOST_TASKS + 1, 8, "tasks from 1 to 10,000"),
        ({}, 1, 0, "from 1 to 200,000"),
        ({}, 1, MOST_EXAMPLES + 8, "from 1 to 200,000"),
        ({}, 1, 12, "take 8 or 16"),
        ({}, 1, 3, "take 8."),
        ({"finished": True}, 1, 8, "has ended"),
        ({"remaining_seconds": 0.0}, 1, 8, "time is used up"),
        ({"remaining_tokens": 400.0}, 6, 8, "room for 5 more tasks of this size, not for 6"),
        ({"remaining_tokens": -1.0}, 1, 8, "room for 0 more tasks"),
    ],
)
def test_what_cannot_be_says_why(changes: dict[str, object], tasks: int, examples: int, says: str) -> None:
    plan = plan_seeding(replace(FACTS, **changes), tasks=tasks, examples=examples)  # type: ignore[arg-type]
    assert len(plan.problems) == 1
    assert says in plan.problems[0]
    assert (plan.slices, plan.free, plan.mark) == ((), FACTS.free, "")


def test_all_of_the_budget_may_be_seeded() -> None:
    plan = plan_seeding(replace(FACTS, remaining_tokens=400.0), tasks=5, examples=8)
    assert plan.problems == ()


def test_the_usual_task_is_whole_batches_and_bounded() -> None:
    assert usual_examples(speed=100, task_seconds=10, tokens_per_example=10, batch_examples=8) == 96
    assert usual_examples(speed=0, task_seconds=10, tokens_per_example=10, batch_examples=8) == 8
    huge = usual_examples(speed=1e9, task_seconds=600, tokens_per_example=10, batch_examples=64)
    assert huge == MOST_EXAMPLES // 64 * 64
