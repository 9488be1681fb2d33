"""The merger: makes versions while any is due, and watches what became of them. Off the request path."""

from __future__ import annotations

from bithaul.coordinator.commands.merge_round import merge_round
from bithaul.coordinator.commands.roll_back import watch_heldout
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import runs, versions


def merge_all(c: Coordinator) -> str:
    """Merge until nothing is due. Says which version is in force."""
    back = watch_heldout(c)
    if back is not None:
        return f"the held-out loss jumped: version {back.restored} is in force again, as {back.version}"
    made = merge_round(c)
    while made is not None:
        newest, made = made, merge_round(c)
        if made is None:
            return f"version {newest.version}"
    with c.database.read() as connection:
        run = runs.find_run(connection)
        if run is None:
            return "no run yet"
        return f"version {versions.newest_version(connection, run.id).version}"
