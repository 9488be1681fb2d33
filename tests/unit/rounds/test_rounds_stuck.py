"""When a lease counts as stuck, and when its worker is only slow."""

from __future__ import annotations

from dataclasses import replace

from bithaul.rounds.stuck import LeaseFacts, patience, why_stuck

FINE = LeaseFacts(granted_at=1000.0, moved_at=1590.0, soft_stop_seconds=600.0, transfer_seconds=100.0)


def test_progress_is_what_counts() -> None:
    assert why_stuck(FINE, patience=90.0, now=1680.0) == ""
    assert why_stuck(FINE, patience=90.0, now=1681.0) == "It has not got further for 91 s."


def test_long_past_its_soft_stop_progress_does_not_help() -> None:
    """Catches a worker that never ends, and one kicked while its update is on a slow line."""
    going = replace(FINE, moved_at=1790.0)
    assert why_stuck(going, patience=90.0, now=1790.0) == ""
    going = replace(FINE, moved_at=1800.0)
    assert why_stuck(going, patience=90.0, now=1800.0) == "It should have stopped 200 s ago and goes on."


def test_patience_is_some_heartbeats_and_never_short() -> None:
    assert patience(5.0) == 90.0
    assert patience(60.0) == 360.0
