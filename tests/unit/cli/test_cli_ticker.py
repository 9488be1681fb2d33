"""Progress with rate and time left, and no flood of lines where no terminal is."""

from __future__ import annotations

import io

from rich.console import Console

from bithaul.cli.ticker import Ticker


def test_plain_lines_come_now_and_then() -> None:
    """One at 11 s and one at 22 s; a line for every call would fill a log."""
    times = iter([0.0, 4.0, 11.0, 12.0, 22.0])
    out = io.StringIO()
    console = Console(file=out)
    with console.status("") as status:
        tick = Ticker(1000, "tokens", console=console, status=status, clock=lambda: next(times))
        for done in (100, 275, 300, 440):
            tick(done)
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    assert lines == [
        "275 of 1,000 tokens, 25 a second, 29 s left",
        "440 of 1,000 tokens, 20 a second, 28 s left",
    ]


def test_a_terminal_sees_the_status_alone() -> None:
    times = iter([0.0, 20.0])
    console = Console(file=io.StringIO(), force_terminal=True)
    with console.status("") as status:
        Ticker(10, "requests", console=console, status=status, clock=lambda: next(times))(5)
        assert status.status == "5 of 10 requests, 0 a second, 20 s left"
