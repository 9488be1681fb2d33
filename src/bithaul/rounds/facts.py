"""What merge rules look at: reports that wait, leases that are open, and the run's recent past.

Plain data, gathered by the coordinator or the simulator and handed in. Times are seconds of the coordinator's
clock. Nothing here decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Contribution:
    """One accepted update that is in no version yet.

    `norm` is the L2 norm of the decoded update, 0 when it is not known; `steps` its inner steps. `clip` is
    the factor a gate put on it, `trust` the weight of its worker.
    """

    seq: int  # of the ledger
    worker: str
    tokens: int
    staleness: int  # versions made since its base, when it is merged
    received_at: float
    norm: float = 0.0
    steps: int = 1
    clip: float = 1.0
    trust: float = 1.0


@dataclass(frozen=True)
class OpenLease:
    worker: str
    on_current_base: bool
    aimed_at: float  # planned end


@dataclass(frozen=True)
class RoundFacts:
    """What `due` looks at. `contributions` are sorted by seq.

    `workers` may take work and were heard a moment ago; `active` counts all that may take work.
    """

    now: float
    tick: float  # planned end of the round
    length: float  # planned length of the round in seconds
    contributions: Sequence[Contribution]
    leases: Sequence[OpenLease]
    workers: frozenset[str]
    work_left: bool  # False: the budget is covered, nobody will get a new lease
    paused: bool
    active: int = 0


@dataclass(frozen=True)
class Glance:
    """A round by its sums, which are cheap to read when a thousand work on it."""

    now: float
    tick: float
    length: float
    reports: int  # accepted and in no version yet
    first_report_at: float | None
    leases: int  # open
    aimed: int  # of them on the current base and aimed at this round's tick


@dataclass(frozen=True)
class Flush:
    """One version made before: its tokens and their token-weighted mean staleness."""

    tokens: int
    staleness: float


@dataclass(frozen=True)
class Past:
    """What a step looks back on: `flushes` and `reports` (tokens of merged reports), the newest last.

    `trust` is the highest weight of a worker that may take work: what a full one is among them.
    """

    version: int = 1  # the base of the step
    active: int = 0  # workers that may take work
    flushes: Sequence[Flush] = ()
    reports: Sequence[int] = ()
    trust: float = 1.0
