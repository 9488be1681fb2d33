"""The audit in a rehearsal: lazy machines are found, honest ones are not, and every promise is kept."""

from __future__ import annotations

from typing import Any

import pytest

from bithaul.simulation.scenario import STORM


@pytest.mark.parametrize("poison", ["noise", "half"])
def test_a_lazy_machine_is_found_and_honest_ones_are_not(make: Any, poison: str) -> None:
    """Catches an audit that sees nothing, and one that accuses whoever a lazy machine repeats."""
    outcome = make(workers=5, hours=2.0, seed=2, gates=("audit",), poisoned=1, poison=poison).run()
    assert outcome.kept, outcome.broken
    honest, lazy = outcome.judged["honest"], outcome.judged["poisoned"]
    assert lazy["reports"] > 5
    assert lazy["repeated"] >= 2
    assert lazy["differed"] >= 2
    assert lazy["strikes"] >= 1
    assert honest["repeated"] > 4
    assert honest["strikes"] == 0, "found by a lazy machine's word"


def test_a_machine_that_sends_what_others_did_is_for_the_gate_of_copies(make: Any) -> None:
    """A toy's updates all point the same way, so a copy is as good as work: the audit is measured for it on
    real ones. Catches copies that are none.
    """
    outcome = make(workers=3, gates=("copy",), poisoned=1, poison="copy").run()
    assert outcome.kept, outcome.broken
    assert outcome.verdicts["rejected"] > 2


def test_honest_machines_alone_are_never_doubted(make: Any) -> None:
    """Catches moments, residuals, rates or examples that differ between a first run and its repetition."""
    outcome = make(workers=4, hours=2.0, gates=("audit",)).run()
    assert outcome.kept, outcome.broken
    honest = outcome.judged["honest"]
    assert honest["repeated"] > 4
    assert (honest["differed"], honest["strikes"]) == (0, 0)
    assert outcome.verdicts["compared"] >= honest["repeated"]
    plain = make(workers=4, hours=2.0).run()
    assert outcome.longest_gap_rounds < plain.longest_gap_rounds + 1.0, "no round waits for a repetition"


@pytest.mark.parametrize("rule", ["sync", "buffered_nesterov"])
def test_a_storm_with_audits_keeps_every_promise(make: Any, rule: str) -> None:
    """Catches a repetition that a crash, an expiry or a rollback turns into a second count."""
    outcome = make(
        workers=6, hours=3.0, seed=5, rule=rule, gates=("audit",), crashes=2, rollbacks=1, rates=STORM
    ).run()
    assert outcome.broken == ""
    assert outcome.kept
    assert outcome.judged["honest"]["repeated"] > 0


def test_a_run_with_a_budget_ends_while_tasks_are_repeated(make: Any) -> None:
    outcome = make(workers=4, hours=2.0, gates=("audit",), budget_tokens=60_000.0).run()
    assert outcome.kept, outcome.broken
    assert outcome.tokens >= 60_000.0 - 200
    assert outcome.simulated_hours < 6.0
