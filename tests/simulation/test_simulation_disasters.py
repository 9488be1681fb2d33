"""What befalls the coordinator's machine, and what arrives out of turn: nothing that was promised breaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import bithaul
from bithaul.coordinator.context import CrashPoints as CoordinatorPoints
from bithaul.simulation.faults import Kind
from bithaul.simulation.scenario import EPOCH
from bithaul.worker.tools import CrashPoints as WorkerPoints

HALF = EPOCH + 1800.0


def judged(rehearsal: Any) -> Any:
    """The outcome, after every rule fired and everything held."""
    outcome = rehearsal.run()
    assert rehearsal.faults.left == [], "a fault that was asked for did not happen"
    assert outcome.broken == ""
    assert outcome.kept
    return outcome


def test_requests_that_arrive_after_later_ones(make: Any) -> None:
    """Catches an update applied twice, or a second receipt, when a copy arrives after its repetition."""
    rehearsal = make()
    at = rehearsal.faults.at
    at(worker="w1", nth=1).reorder(90.0)
    at(worker="w2", nth=2).reorder(2400.0)
    at(worker="w3", nth=1).reorder(1200.0, "work")
    at(worker="w1", nth=2).reorder(300.0, "heartbeat")
    outcome = judged(rehearsal)
    assert outcome.faults["reorder"] == 4
    assert outcome.verdicts == {"accepted": outcome.accepted}


def test_a_copied_update_counts_once_where_the_gate_is_on(make: Any) -> None:
    """Catches a gate that lets another worker's payload through, and one that refuses its owner."""
    rehearsal = make(gates=("copy",))
    rehearsal.faults.at(worker="w2", nth=2).copy_of("w1")
    outcome = judged(rehearsal)
    assert outcome.verdicts["rejected"] == 1
    assert outcome.faults == {Kind.COPY: 1}
    without = make()
    without.faults.at(worker="w2", nth=2).copy_of("w1")
    assert "rejected" not in judged(without).verdicts


def test_a_coordinator_that_stands_still_wakes_up_harmless(make: Any) -> None:
    """Catches a lease taken, or a version made, by somebody who believes that no time has passed."""
    rehearsal = make(hours=1.5)
    for minutes, seconds in ((12, 90.0), (31, 900.0), (55, 4000.0)):
        rehearsal.time.at(EPOCH + 60.0 * minutes, lambda s=seconds: rehearsal.house.pause(s))
    outcome = judged(rehearsal)
    assert outcome.versions > 2
    assert outcome.given_up == 0


@pytest.mark.parametrize("crash", [None, "submit.gated"])
def test_a_full_disk_costs_time_and_nothing_else(make: Any, crash: str | None) -> None:
    """Catches an acknowledgement that was not stored, and half a version; also over a restart."""
    rehearsal = make(hours=1.5)
    house = rehearsal.house
    seen: list[int] = []
    rehearsal.time.at(HALF, lambda: house.fill_disk())
    rehearsal.time.at(HALF, lambda: seen.append(rehearsal.record.newest))
    if crash is not None:
        rehearsal.time.at(HALF, lambda: rehearsal.faults.crash_coordinator(crash))
    rehearsal.time.at(HALF + 1700.0, lambda: seen.append(rehearsal.record.newest))
    rehearsal.time.at(HALF + 1800.0, lambda: house.fill_disk(full=False))
    outcome = judged(rehearsal)
    assert seen[0] == seen[1] > 1, "no version while there is no room for it"
    assert outcome.versions > seen[1], "it goes on when there is room again"
    assert outcome.verdicts == {"accepted": outcome.accepted}


def test_a_coordinator_from_a_backup(make: Any) -> None:
    """Catches workers that hold on to what is gone, an old receipt for new work, a loss that is not said."""
    rehearsal = make(workers=4, hours=3.0)
    rehearsal.time.at(EPOCH + 3000.0, rehearsal.back_up)
    rehearsal.time.at(EPOCH + 6500.0, lambda: rehearsal.restore(back_after=120.0))
    outcome = judged(rehearsal)
    (lost,) = outcome.restored
    assert lost["versions"] >= 3
    assert lost["acknowledged"] >= 3
    assert lost["reports"] >= lost["acknowledged"]
    assert outcome.accepted > 8, "workers go on with the restored one"
    assert outcome.versions > 5
    assert outcome.given_up == 0


def points(folder: str) -> list[str]:
    """Every `crash_points.hit("...")` of a part of the source."""
    source = Path(bithaul.__file__).parent / folder
    found = [re.findall(r'crash_points\.hit\(\s*"([^"]+)"', p.read_text()) for p in source.rglob("*.py")]
    return sorted(name for names in found for name in names)


def test_every_point_in_the_code_has_a_name_and_every_name_a_point() -> None:
    """Catches a new crash point that no test passes, and a name whose place in the code is gone."""
    assert points("coordinator") == sorted(CoordinatorPoints.NAMES)
    assert points("worker") == sorted(WorkerPoints.NAMES)
