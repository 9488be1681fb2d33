"""The scorer: the loss score of one report at a time, in a small share of the coordinator's time.

A score that takes long is followed by a long rest, so a slow coordinator or a large model scores fewer; those
that wait too long are given up (`retention`).
"""

from __future__ import annotations

from bithaul.coordinator.commands.scores import score_next
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, scores
from bithaul.rounds.gates import Gate
from bithaul.rounds.scores import rest_after


def score_waiting(c: Coordinator) -> str:
    """Score a report if one waits and it is time for it. Says what came of it."""
    with c.database.read() as connection:
        run = runs.find_run(connection)
        if run is None:
            return "no run yet"
        if Gate.SCORE not in run.gates:
            return "the gate score is off"
        last = scores.last(connection, run.id)
        if last is not None and 0.0 <= c.clock.now() - last[0] < rest_after(last[1]):
            return f"rests after a score that took {last[1]:.1f} s"
    done = score_next(c)
    if done is None:
        return "nothing waits for a score"
    report = done.report
    if done.found is None:
        return f"report {report.seq} of {report.worker} could not be scored"
    return f"report {report.seq} of {report.worker} scored {done.found.value:.2f} in {done.seconds:.1f} s"
