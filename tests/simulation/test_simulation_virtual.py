"""Virtual time: order, waiting inside ordinary code, and sudden death."""

from __future__ import annotations

import pytest

from bithaul.simulation.virtual import Killed, Process, VirtualTime


def nothing() -> None:
    """Nobody listens."""


def test_events_come_in_order_of_time_then_of_asking() -> None:
    time, seen = VirtualTime(100.0), []
    time.at(103.0, lambda: seen.append("c"))
    time.after(1.0, lambda: seen.append("a"))
    time.after(1.0, lambda: seen.append("b"))
    time.after(2.0, lambda: seen.append("never")).cancel()
    time.at(50.0, lambda: seen.append(f"late, at {time.now()}"))
    time.run(102.0)
    assert (seen, time.now()) == (["late, at 100.0", "a", "b"], 102.0)
    time.run(200.0)
    assert seen[-1] == "c"
    assert time.events == 4


def test_processes_take_turns() -> None:
    """Catches two of them running at once, and time that goes on while one computes."""
    time, seen = VirtualTime(0.0), []

    def body(name: str, step: float) -> None:
        for _ in range(3):
            time.wait(step)
            seen.append((name, time.now()))

    for name, step in (("a", 2.0), ("b", 3.0)):
        Process(time, lambda n=name, s=step: body(n, s), ended=nothing).start()
    time.run(100.0)
    assert seen == [("a", 2.0), ("b", 3.0), ("a", 4.0), ("b", 6.0), ("a", 6.0), ("b", 9.0)]
    assert time.processes == []


def test_a_killed_process_stops_at_its_wait() -> None:
    """Catches a victim that finishes its work, and one whose death nobody hears of."""
    time, seen = VirtualTime(0.0), []

    def body() -> None:
        try:
            time.wait(10.0)
            seen.append("survived")
        except Exception:  # noqa: BLE001 - what the worker around it would do
            seen.append("swallowed")
        finally:
            seen.append("gone")

    process = Process(time, body, ended=lambda: seen.append("heard"))
    process.start()
    time.after(5.0, process.kill)
    time.run(20.0)
    assert seen == ["gone", "heard"]
    assert not process.alive


def test_one_that_kills_itself_dies_at_once() -> None:
    time, seen = VirtualTime(0.0), []

    def body() -> None:
        process.kill()
        seen.append("last words")
        time.wait(0.0)
        seen.append("survived")

    process = Process(time, body, ended=nothing)
    process.start()
    time.run(1.0)
    assert seen == ["last words"]
    with pytest.raises(Killed):
        process.check()


def test_a_defect_in_a_process_is_not_lost() -> None:
    """Catches a rehearsal that passes because its workers all died of a bug."""
    time = VirtualTime(0.0)

    def body() -> None:
        time.wait(1.0)
        raise ZeroDivisionError

    Process(time, body, ended=nothing).start()
    with pytest.raises(ZeroDivisionError):
        time.run(10.0)


def test_the_end_kills_what_is_left() -> None:
    time = VirtualTime(0.0)
    for _ in range(3):
        Process(time, lambda: time.wait(1e9), ended=nothing).start()
    time.run(1.0)
    time.end()
    assert time.processes == []
