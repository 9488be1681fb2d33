"""Go back to an older version: its weights are the newest version again, the first of a new lineage.

The float32 vector and the momentum come back if they are still kept, else what was published is the vector.
Nothing is deleted. What was merged since is marked as discarded and its slices wait as new tasks, open leases
end, the count of tokens and the active seconds are what they were, and contributors are on probation. What
comes later from the old lineage is `stale`. By the operator, or by the gate `rollback` when the held-out loss
has jumped (exchange.md §9, 11). One transaction, after the blobs are durable.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from bithaul.coordinator.blobs.store import BlobRef
from bithaul.coordinator.commands.publish import Published, publish
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, ledger, runs, versions, work
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.coordinator.identity.audit import record
from bithaul.errors import Conflict, NotFound, Unavailable
from bithaul.exchange.messages import RunState
from bithaul.exchange.weights import FloatVector, open_weights, weights_pieces
from bithaul.rounds import trust
from bithaul.rounds.gates import Gate
from bithaul.rounds.leases import Ending, TaskState
from bithaul.rounds.rollback import MadeVersion, Measured, RollbackPlan, alarm, plan_rollback

TRIES = 5  # a version that is made meanwhile is a reason to decide anew
LOOKED_BACK = 256  # versions in which an alarm is looked for


@dataclass(frozen=True)
class RolledBack:
    """`version` is the new one; `paused`: it was the second automatic one in a row."""

    restored: int
    version: int
    lineage: int
    tokens_total: int
    discarded_tasks: int
    paused: bool


@dataclass(frozen=True)
class _Decided:
    run: RunRow
    target: VersionRow
    newest: VersionRow
    plan: RollbackPlan


def roll_back(c: Coordinator, to: int, *, automatic: bool = False, actor: str = "cli") -> RolledBack:
    """Raises `NotFound` for a version that never was, `Conflict` for one that cannot come back."""
    for _ in range(TRIES):
        with c.database.read() as connection:
            decided = _decide(connection, to, automatic=automatic)
        c.crash_points.hit("rollback.decided")
        target, number = decided.target, decided.plan.version
        theta = _vector(c, decided.run, target.theta_sha256 or target.sha256)
        published = publish(c, theta, version=number, form=decided.run.weight_format)
        momentum = None
        if decided.run.rule.momentum and target.momentum_sha256:
            carried = _vector(c, decided.run, target.momentum_sha256)
            momentum = c.blobs.put(weights_pieces(number, carried), name=c.ids.nonce())
        c.crash_points.hit("rollback.blob_written")
        with c.database.write() as connection:
            again = _decide(connection, to, automatic=automatic)
            if again.newest.version != decided.newest.version:
                continue
            _write(c, connection, again, published, momentum, automatic=automatic)
            who = "coordinator" if automatic else actor
            detail = f"as version {number}"
            record(
                connection,
                c.clock.now(),
                actor=who,
                action="run.rollback",
                subject=str(to),
                detail=detail,
            )
            c.crash_points.hit("rollback.recorded")
        c.crash_points.hit("rollback.committed")
        c.events.merge.set()
        return RolledBack(
            restored=to,
            version=number,
            lineage=again.plan.lineage,
            tokens_total=again.plan.tokens_total,
            discarded_tasks=len(again.plan.discarded_tasks),
            paused=again.plan.pause,
        )
    raise Unavailable("Versions are made faster than this one can be restored; pause the run first.")


def watch_heldout(c: Coordinator) -> RolledBack | None:
    """Go back by itself: for a run with the gate `rollback` whose held-out loss has jumped twice in a row."""
    with c.database.read() as connection:
        run = runs.find_run(connection)
        if run is None or Gate.ROLLBACK not in run.gates or run.state is not RunState.RUNNING:
            return None
        made = versions.live(versions.newest_versions(connection, run.id, count=LOOKED_BACK))
    to = alarm(
        [
            Measured(v.version, v.heldout_loss)
            for v in made
            if v.heldout_loss is not None and v.restores is None
        ]
    )
    kept = [v.version for v in made if to is not None and v.version <= to and v.retired_at is None]
    return roll_back(c, kept[-1], automatic=True) if kept else None


def _decide(connection: Connection, to: int, *, automatic: bool) -> _Decided:
    run = runs.get_run(connection)
    rows = versions.list_versions(connection, run.id)
    made = versions.live(rows)
    target = next((v for v in rows if v.version == to), None)
    if target is None:
        raise NotFound(f"There is no weight version {to}.", code="unknown_version")
    if target not in made:
        raise Conflict(f"Version {to} was given up by an earlier rollback; name one that is in force.")
    if target is made[-1]:
        raise Conflict(f"Version {to} is the newest; there is nothing to go back from.")
    if target.retired_at is not None:
        kept = ", ".join(str(v.version) for v in made[:-1] if v.retired_at is None) or "none"
        raise Conflict(f"The weights of version {to} are no longer kept; still there are: {kept}.")
    begun = [v for v in made if v.restores is not None]
    plan = plan_rollback(
        to,
        [MadeVersion(v.version, v.lineage, v.tokens_total) for v in made],
        ledger.merged_after(connection, run.id, version=to),
        automatic=automatic,
        automatic_before=bool(begun) and begun[-1].automatic,
    )
    return _Decided(run, target, made[-1], plan)


def _vector(c: Coordinator, run: RunRow, sha256: str) -> FloatVector:
    """float32 [parameters] of a stored vector, after all of it was verified."""
    return open_weights(c.blobs.verify(sha256).path, expected_count=run.layout.size).vector


def _write(
    c: Coordinator,
    connection: Connection,
    decided: _Decided,
    published: Published,
    momentum: BlobRef | None,
    *,
    automatic: bool,
) -> None:
    run, target, plan, now = decided.run, decided.target, decided.plan, c.clock.now()
    versions.insert_version(
        connection,
        VersionRow(
            run_id=run.id,
            version=plan.version,
            sha256=published.weights.sha256,
            size=published.weights.size,
            created_at=now,
            theta_sha256=published.theta.sha256,
            momentum_sha256=momentum.sha256 if momentum else None,
            tokens_total=plan.tokens_total,
            train_loss=target.train_loss,
            heldout_loss=target.heldout_loss,
            heldout_tokens=target.heldout_tokens,
            lineage=plan.lineage,
            restores=plan.restored,
            automatic=automatic,
            active_seconds=target.active_seconds,
        ),
    )
    why = f"the run went back to version {plan.restored}"
    for lease in work.open_leases(connection, run.id):
        work.end_lease(connection, lease, Ending.RELEASED, now=now, reason=why)
    for number in plan.discarded_tasks:
        task = work.get_task(connection, number)
        work.move_task(connection, task, TaskState.DISCARDED, now=now, reason=why)
        work.insert_task(connection, run.id, task.positions, now=now, parent=task.id)
    ledger.discard(connection, plan.discarded_tasks, version=plan.version)
    for name in plan.on_probation:
        after = trust.rolled_back(fleet.get_worker(connection, name).trust, why)
        fleet.update_worker(connection, name, **fleet.trust_values(after))
    _turn_back(connection, decided, now=now)


def _turn_back(connection: Connection, decided: _Decided, *, now: float) -> None:
    """Time and state of the run; its tokens follow from the ledger."""
    run, target, plan = decided.run, decided.target, decided.plan
    values: dict[str, object] = {}
    if target.active_seconds is not None:
        values["active_seconds"] = target.active_seconds
        values["active_anchor"] = None if run.active_anchor is None else now
    if run.state is RunState.FINISHED:
        values["state"] = RunState.RUNNING
    if plan.pause:
        values["state"] = RunState.PAUSED
        values["paused_because"] = (
            "The held-out loss has jumped again after an automatic rollback; the weights of version "
            f"{plan.restored} are in force as version {plan.version}. Look at the workers, then resume it."
        )
    if values:
        runs.update_run(connection, run.id, **values)
