"""The checker sees what is wrong: somebody breaks each promise on purpose, and the rehearsal must say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sqlalchemy import text

from bithaul.coordinator.commands import merge_round as merging
from bithaul.coordinator.commands import publish as publishing
from bithaul.coordinator.commands.steer import pause_run
from bithaul.exchange.bf16 import from_bf16, to_bf16
from bithaul.exchange.weights import BF16, FP32, open_weights, weights_pieces
from bithaul.rounds.leases import Ending
from bithaul.simulation.invariants import Broken
from bithaul.simulation.scenario import EPOCH, Outcome, Rehearsal

Vector = npt.NDArray[np.float32]
HALF = EPOCH + 1800.0


def sabotaged(rehearsal: Rehearsal, sql: str) -> Outcome:
    """Half an hour into it, a statement that no use case would run."""

    def strike() -> None:
        with rehearsal.house.c.database.write() as connection:
            connection.execute(text("PRAGMA foreign_keys=OFF"))
            assert connection.execute(text(sql)).rowcount != 0, "the sabotage found nothing to break"

    rehearsal.time.at(HALF, strike)
    return rehearsal.run()


@pytest.mark.parametrize(
    ("sql", "words", "count"),
    [
        (
            "UPDATE reports SET merged_in = merged_in + 1 WHERE seq = 1",
            "was merged in",
            "double_applied",
        ),
        (
            "UPDATE tasks SET positions = '[[0, 4]]', examples = 4 WHERE id = 2",
            "",
            "slices_uncovered",
        ),
        ("DELETE FROM reports WHERE seq = 2", "vanished", "acknowledged_lost"),
        ("UPDATE reports SET merged_in = NULL WHERE seq = 2", "service merger failed", None),
        ("UPDATE runs SET position_cursor = position_cursor + 8", "positions were cut", "slices_uncovered"),
        ("UPDATE reports SET verdict = 'rejected' WHERE seq = 2", "vanished", "acknowledged_lost"),
    ],
)
def test_a_changed_row_is_seen(make: Any, sql: str, words: str, count: str | None) -> None:
    outcome = sabotaged(make(workers=2, hours=0.8), sql)
    assert words in outcome.broken
    assert outcome.broken
    assert not outcome.kept
    assert count is None or getattr(outcome, count) > 0


def test_two_tasks_with_the_same_examples_are_seen(make: Any) -> None:
    """Conservation alone would not see it: as many positions, but some twice and others never."""
    outcome = sabotaged(
        make(workers=2, hours=0.8),
        "UPDATE tasks SET positions = (SELECT positions FROM tasks WHERE id = 1), "
        "examples = (SELECT examples FROM tasks WHERE id = 1) WHERE id = 2",
    )
    assert not outcome.kept
    assert outcome.broken


def patched(
    make: Any, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any], **scenario: Any
) -> Outcome:
    monkeypatch.setattr(merging, name, change(getattr(merging, name)))
    outcome: Outcome = make(workers=2, hours=0.8, **scenario).run()
    return outcome


def test_an_update_applied_twice_is_seen_in_the_weights(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows look right and only theta is wrong: the replay must tell."""

    def twice(flush: Any) -> Any:
        def wrong(c: Any, *, updates: Any, **options: Any) -> Any:
            return flush(c, updates=[updates[0], *updates[:-1]], **options)

        return wrong

    outcome = patched(make, monkeypatch, "flush", twice)
    assert not outcome.replay_identical
    assert not outcome.kept


def cut_off(theta: Vector) -> dict[str, Vector]:
    """bfloat16 by dropping bits, which is not the nearest."""
    return {"weights": (theta.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)}


def from_published(theta: Vector) -> dict[str, Vector]:
    """The coordinator forgets what publishing rounded away."""
    return {"theta": from_bf16(to_bf16(theta))}


@pytest.mark.parametrize("wrong", [cut_off, from_published])
def test_a_wrong_rounding_is_seen(
    make: Any, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Vector], dict[str, Vector]]
) -> None:
    """Files with the right hashes and the wrong values, of what workers fetch and of what is kept."""

    def change(flush: Any) -> Any:
        def other(c: Any, *, version: int, layout: Any, **options: Any) -> Any:
            merged = flush(c, version=version, layout=layout, **options)
            theta = np.array(open_weights(merged.theta.path, expected_count=layout.size).vector)
            blobs = {
                name: c.blobs.put(
                    weights_pieces(version, vector, BF16 if name == "weights" else FP32), name=c.ids.nonce()
                )
                for name, vector in wrong(theta).items()
            }
            return replace(merged, **blobs)

        return other

    outcome = patched(make, monkeypatch, "flush", change, weights="bf16")
    assert not outcome.replay_identical
    assert not outcome.kept


@pytest.mark.parametrize("wrong", ["step", "base"])
def test_a_delta_that_leads_elsewhere_is_seen(make: Any, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Workers would fetch whole files for ever and train on: only the checker can tell."""
    right = publishing.NextVersion.pieces

    def pieces(self: Any) -> Any:
        for number, (way, whole) in enumerate(right(self)):
            if number == 0:
                place = 60 if wrong == "step" else 20  # a scale; the SHA-256 of the base
                yield way[:place] + bytes([way[place] ^ 1]) + way[place + 1 :], whole
            else:
                yield way, whole

    monkeypatch.setattr(publishing.NextVersion, "pieces", pieces)
    outcome = make(workers=2, hours=0.8, weights="int8-delta").run()
    assert not outcome.replay_identical
    assert not outcome.kept


def test_a_report_forgotten_by_the_merger_is_seen(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches accepted updates that no version ever holds."""

    def forgetful(read_round: Any) -> Any:
        def wrong(connection: Any, run: Any, *, now: float) -> Any:
            here = read_round(connection, run, now=now)
            return replace(here, reports=[r for r in here.reports if r.seq != 3])

        return wrong

    outcome = patched(make, monkeypatch, "read_round", forgetful)
    assert "although all is quiet" in outcome.broken
    assert outcome.acknowledged_lost == 1


def test_a_merger_that_fails_for_ever_is_seen(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost when nothing moves: a service that survives its defects must not hide them."""

    def broken(flush: Any) -> Any:
        def wrong(*unused: Any, **options: Any) -> Any:
            raise ZeroDivisionError

        return wrong

    outcome = patched(make, monkeypatch, "flush", broken)
    assert "service merger failed: ZeroDivisionError" in outcome.broken
    assert not outcome.kept


def test_a_run_that_stands_still_is_seen(make: Any) -> None:
    """Catches a rule that is never due again: nothing is lost as long as nothing moves."""
    rehearsal = make(workers=2, hours=2.5)
    rehearsal.time.at(HALF, lambda: rehearsal.house.call(pause_run))
    outcome = rehearsal.run()
    assert "no version for" in outcome.broken
    assert not outcome.kept


def test_a_defect_of_the_worker_is_seen(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker lives through a broken task and reports it; a rehearsal must not."""

    def broken(self: Any, *unused: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("bithaul.worker.task.TaskRunner._pack", broken)
    assert "defect of the worker" in make(workers=1, hours=0.5, quiet_hours=1.0).run().broken


def test_a_lease_taken_before_its_deadline_is_seen(make: Any) -> None:
    from bithaul.coordinator.database import runs, work

    rehearsal = make(workers=2, hours=0.8)

    def take() -> None:
        with rehearsal.house.c.database.write() as connection:
            lease = work.open_leases(connection, runs.get_run(connection).id)[0]
            work.end_lease(connection, lease, Ending.EXPIRED, now=rehearsal.time.now())

    rehearsal.time.at(HALF, take)
    assert "before their deadline" in rehearsal.run().broken


def test_a_receipt_that_changes_is_seen(make: Any) -> None:
    rehearsal = make()
    seen: list[Any] = []
    original = rehearsal.checker.heard
    for machine in rehearsal.machines:
        machine._heard = lambda worker, receipt: (seen.append((worker, receipt)), original(worker, receipt))
    rehearsal.run()
    worker, receipt = seen[0]
    with pytest.raises(Broken, match="became"):
        original(worker, receipt.model_copy(update={"tokens": receipt.tokens + 1}))
