"""The coordinator's time: the machine's, which is never seen to go back."""

from __future__ import annotations

import threading

import pytest

from bithaul.coordinator.clock import SystemClock


class Machine:
    """Two clocks that a test moves: `wall` may be set, `monotonic` only runs."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_000_000.0, 50.0

    def run(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def clock(machine: Machine) -> SystemClock:
    return SystemClock(wall=lambda: machine.wall, monotonic=lambda: machine.monotonic)


def test_it_is_the_machines(machine: Machine, clock: SystemClock) -> None:
    assert clock.now() == 1_000_000.0
    machine.run(12.5)
    assert (clock.now(), clock.monotonic()) == (1_000_012.5, 62.5)


def test_set_back_by_hours_it_goes_on(machine: Machine, clock: SystemClock) -> None:
    """Catches deadlines that move away by as much: a round would wait six hours for a dead machine."""
    clock.now()
    machine.wall -= 6 * 3600
    machine.run(30.0)
    assert clock.now() == 1_000_030.0
    machine.run(600.0)
    assert clock.now() == 1_000_630.0
    machine.wall += 6 * 3600 + 5.0  # right again
    assert clock.now() == 1_000_635.0


def test_set_forward_it_follows(machine: Machine, clock: SystemClock) -> None:
    machine.wall += 3600.0
    assert clock.now() == 1_003_600.0


def test_small_corrections_are_followed_without_a_step_back(machine: Machine, clock: SystemClock) -> None:
    """Catches a lead that grows with each correction."""
    seen = []
    for _ in range(100):
        machine.run(10.0)
        machine.wall -= 0.2
        seen.append(clock.now() - machine.wall)
    assert max(seen) == 0.0
    machine.wall -= 0.5
    assert clock.now() == machine.wall + 0.5


def test_threads_never_see_it_go_back() -> None:
    clock, wrong = SystemClock(), []

    def look() -> None:
        last = clock.now()
        for _ in range(20_000):
            now = clock.now()
            if now < last:
                wrong.append(last - now)
            last = now

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
