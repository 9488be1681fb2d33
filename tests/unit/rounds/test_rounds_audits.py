"""The audit's decisions: who is looked at, what is repeated by whom, and what counts as the same work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.rounds.audits import BUSY, FLAGGED, MOST_STEPS, Draw, Waiting, choose, draw, likeness, repeatable
from bithaul.rounds.gates import audit_rate
from bithaul.rounds.sizing import Size

VECTORS = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=2)


def of(u: list[float], v: list[float]) -> float:
    a, b = np.array(u), np.array(v)
    return likeness(float(a @ a), float(a @ b), float(b @ b))


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 10_000))
def test_whatever_is_repeated_was_flagged(chance: float, streak: int) -> None:
    """Catches a first run with a residual and old moments that is compared all the same."""
    drawn = draw(chance, streak=streak)
    assert drawn.flagged or not drawn.repeated


@pytest.mark.parametrize("streak", [0, 1, 7, 40, 1000])
def test_shares_are_the_rate_and_twice_the_rate(streak: int) -> None:
    """Catches a flag that tells a worker that it will be repeated."""
    drawn = [draw((i + 0.5) / 10_000, streak=streak) for i in range(10_000)]
    rate = audit_rate(streak)
    assert sum(d.repeated for d in drawn) == pytest.approx(10_000 * rate, abs=1)
    assert sum(d.flagged for d in drawn) == pytest.approx(10_000 * min(1.0, FLAGGED * rate), abs=1)


def test_a_newcomer_is_always_looked_at() -> None:
    assert draw(0.999, streak=0) == Draw(flagged=True, repeated=True)


@given(st.integers(1, 500), st.floats(0.0, 1e5))
def test_a_flagged_task_is_whole_batches_that_another_can_repeat(batches: int, tokens: float) -> None:
    size = Size(4 * batches, 28.0 * batches, 10.0, 15.0)
    cut = repeatable(size, tokens=tokens, batch_tokens=28.0, batch_examples=4)
    assert cut.examples % 4 == 0
    assert 4 <= cut.examples <= size.examples
    assert cut.tokens <= max(tokens, 28.0) + 1e-6
    assert cut.tokens == pytest.approx(7 * cut.examples)
    assert cut.soft_stop_seconds <= size.soft_stop_seconds
    assert cut.examples <= 4 * MOST_STEPS, "honest machines would drift apart"
    if size.tokens <= tokens and batches <= MOST_STEPS:
        assert cut == size


def test_a_task_that_fits_is_left_alone() -> None:
    size = Size(4 * MOST_STEPS, 28.0 * MOST_STEPS, 10.0, 15.0)
    assert repeatable(size, tokens=300.0, batch_tokens=28.0, batch_examples=4) == size


@given(VECTORS, VECTORS)
def test_likeness_is_symmetric_and_never_above_the_cosine(u: list[float], v: list[float]) -> None:
    """Catches a short update that passes by its direction."""
    found = of(u, v)
    assert found == pytest.approx(of(v, u))
    assert -1.0 - 1e-9 <= found <= 1.0 + 1e-9
    lengths = float(np.linalg.norm(u) * np.linalg.norm(v))
    if lengths > 1e-6:
        assert abs(found) <= abs(float(np.dot(u, v)) / lengths) + 1e-6


def test_what_likeness_says() -> None:
    assert of([3.0, 4.0], [3.0, 4.0]) == 1.0
    assert of([3.0, 4.0], [-3.0, -4.0]) == -1.0
    assert of([3.0, 4.0], [1.5, 2.0]) == 0.5, "half as far the same way"
    assert of([0.0, 0.0], [0.0, 0.0]) == 1.0
    assert of([0.0, 0.0], [3.0, 4.0]) == 0.0


def chosen(*waiting: Waiting, worker: str = "bob", able: str = "ann bob cat", **changes: float) -> int | None:
    values = {"speed": 10.0, "seconds": 20.0, "busy": 0, **changes}
    found = choose(waiting, worker=worker, able=able.split(), **values)  # type: ignore[arg-type]
    return None if found is None else found.report


def test_the_oldest_that_is_anothers_and_not_too_long() -> None:
    """Catches a worker that repeats its own work, and a slow one that gets a fast one's task."""
    assert chosen(Waiting(1, "bob", 100), Waiting(2, "ann", 300), Waiting(3, "ann", 200)) == 3
    assert chosen(Waiting(1, "bob", 100)) is None
    assert chosen() is None


def test_a_second_opinion_is_somebody_elses() -> None:
    """Catches one wrong machine that brings an honest one two misses in a row."""
    doubted = Waiting(1, "ann", 100, missed_by="bob")
    assert chosen(doubted) is None
    assert chosen(doubted, worker="cat") == 1
    assert chosen(doubted, able="ann bob") == 1, "where nobody else is there it counts"


def test_few_repeat_at_a_time() -> None:
    """Catches a fleet of newcomers in which everybody repeats and nobody trains."""
    one = Waiting(1, "ann", 100)
    assert chosen(one, busy=1) is None
    many = " ".join(["ann", "bob", *(f"w{i}" for i in range(2 * BUSY - 2))])
    assert chosen(one, able=many, busy=1) == 1
    assert chosen(one, able=many, busy=2) is None
