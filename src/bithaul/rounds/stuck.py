"""Which leases get nowhere: no progress for a while, or still open well past their soft stop.

Progress is a heartbeat with more tokens, or a piece of an upload; being alive is none.
"""

from __future__ import annotations

from dataclasses import dataclass

STALL_BEATS = 6  # a lease without progress for so many heartbeats is stuck ...
STALL_SECONDS = 90.0  # ... but never sooner


@dataclass(frozen=True)
class LeaseFacts:
    """`moved_at`: when the lease last got further; `transfer_seconds`: what up and down may take."""

    granted_at: float
    moved_at: float
    soft_stop_seconds: float
    transfer_seconds: float


def patience(heartbeat_seconds: float) -> float:
    """How long a lease may stand still."""
    return max(STALL_SECONDS, STALL_BEATS * heartbeat_seconds)


def why_stuck(lease: LeaseFacts, *, patience: float, now: float) -> str:
    """A sentence about its worker, without the name; empty when all is well."""
    quiet = now - lease.moved_at
    if quiet > patience:
        return f"It has not got further for {int(quiet)} s."
    over = now - lease.granted_at - lease.soft_stop_seconds
    if over > lease.transfer_seconds + patience:
        return f"It should have stopped {int(over)} s ago and goes on."
    return ""
