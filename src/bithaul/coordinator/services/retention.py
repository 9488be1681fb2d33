"""Which weight versions, snapshots and payloads stay on disk, and deleting the rest.

Kept: the newest K versions, each Nth if wanted, pinned ones, any base with an open lease, and for the gates
`rollback`, `audit` and `score` what they may go back to: older versions, and updates that wait to be repeated
or scored with their bases. What a step starts from (theta and momentum) is kept with the newest only, and so
are deltas: a worker that lacks more of them than pay fetches a whole version.
Rows stay; only blobs go, and only after their row says so. Blobs that no row names (left by a crash) go too
once they are old enough not to be in the making.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import ledger, repetitions, runs, scores, versions, work
from bithaul.coordinator.database.ledger import ReportRow
from bithaul.coordinator.database.runs import RunRow
from bithaul.coordinator.database.versions import VersionRow
from bithaul.exchange.deltas import longest_chain
from bithaul.rounds import audits
from bithaul.rounds import scores as rounds_scores
from bithaul.rounds.gates import Gate

SNAPSHOTS = 2  # newest versions whose theta and momentum are kept
ORPHAN_SECONDS = 3600.0
LATE_SECONDS = 86_400.0  # after its end a lease has no late report any more
MEASURED = 4  # versions with a held-out loss that the gate `rollback` may have to go back over


@dataclass(frozen=True)
class Retired:
    """What was given up, by SHA-256."""

    versions: int
    blobs: Sequence[str]


def retain(c: Coordinator) -> str:
    with c.database.write() as connection:
        run = runs.find_run(connection)
        if run is None:
            return "no run yet"
        retired = _retire(c, connection, run)
    c.crash_points.hit("retention.half")
    freed = sum(c.blobs.delete(sha256) for sha256 in retired.blobs)
    orphans, orphan_bytes = delete_orphans(c, older_than=c.clock.now() - ORPHAN_SECONDS)
    return (
        f"{retired.versions} versions retired, {len(retired.blobs) + orphans} blobs "
        f"({(freed + orphan_bytes) // 2**20} MiB) deleted"
    )


def _retire(c: Coordinator, connection: Connection, run: RunRow) -> Retired:
    rows = versions.list_versions(connection, run.id)
    newest = rows[-1].version
    bases = {lease.base_version for lease in work.open_leases(connection, run.id)}
    bases |= _ways_back(run, rows)
    now = c.clock.now()
    looked_at = _kept_to_repeat(connection, run, now=now) + _kept_to_score(connection, run)
    bases |= {report.base_version for report in looked_at}
    ways = 1 + longest_chain(run.layout, run.weight_format) if run.weight_format.delta else 0
    dropped: set[str] = set()
    count = 0
    for row in rows:
        if row.retired_at is None and not _kept(c, row, newest=newest, bases=bases):
            versions.update_version(connection, run.id, row.version, retired_at=now)
            dropped.add(row.sha256)
            count += 1
        if row.delta_sha256 and row.version <= newest - ways and row.version not in bases:
            versions.update_version(connection, run.id, row.version, delta_sha256=None)
            dropped.add(row.delta_sha256)
        if row.snapshot and row.version <= newest - SNAPSHOTS:
            versions.update_version(connection, run.id, row.version, theta_sha256=None, momentum_sha256=None)
            dropped.update(row.snapshot)
    before = newest - c.settings.payload_keep_versions
    dropped |= ledger.forget_payloads(
        connection, run.id, merged_before=before, but=[r.seq for r in looked_at]
    )
    wanted = blobs_wanted(connection)
    return Retired(count, sorted(s for s in dropped if s not in wanted))


def _ways_back(run: RunRow, rows: Sequence[VersionRow]) -> set[int]:
    """The last measured versions: two bad ones, and good ones before them."""
    if Gate.ROLLBACK not in run.gates:
        return set()
    measured = [v.version for v in versions.live(rows) if v.heldout_loss is not None]
    return set(measured[-MEASURED:])


def _kept_to_repeat(connection: Connection, run: RunRow, *, now: float) -> list[ReportRow]:
    """Updates that the audit compares with: those being repeated, and the newest that wait for it."""
    repetitions.forget_unreported(connection, run.id, before=now - LATE_SECONDS)
    waiting = repetitions.waiting(connection, run.id)
    held = repetitions.being_repeated(connection, run.id)
    idle = [report for report in waiting if report.seq not in held]
    repetitions.give_up(connection, idle[: -audits.WAITING])
    return [report for report in waiting if report.seq in held] + idle[-audits.WAITING :]


def _kept_to_score(connection: Connection, run: RunRow) -> list[ReportRow]:
    """The newest updates that wait for a score."""
    scores.give_up_lost(connection, run.id)
    waiting = scores.waiting(connection, run.id)
    scores.give_up(connection, [report.seq for report in waiting[: -rounds_scores.WAITING]])
    return waiting[-rounds_scores.WAITING :]


def _kept(c: Coordinator, row: VersionRow, *, newest: int, bases: set[int]) -> bool:
    every = c.settings.retention_every
    return (
        row.version > newest - c.settings.retention_keep
        or row.version in bases
        or row.pinned
        or bool(every and row.version % every == 0)
    )


def blobs_wanted(connection: Connection) -> set[str]:
    """Every blob some row still names."""
    run = runs.find_run(connection)
    wanted = ledger.blobs_in_use(connection)
    if run is not None:
        for row in versions.list_versions(connection, run.id):
            if row.retired_at is None:
                wanted.add(row.sha256)
            wanted.update(row.snapshot)
            if row.delta_sha256:
                wanted.add(row.delta_sha256)
        for kind in ("train", "heldout", "probe"):
            for shard in runs.list_shards(connection, run.id, kind):
                wanted |= {shard.sha256, shard.index_sha256}
    return wanted


def delete_orphans(c: Coordinator, *, older_than: float) -> tuple[int, int]:
    """Delete blobs no row names, written before that time: (how many, bytes)."""
    old = [sha256 for sha256, written in c.blobs.stored() if written < older_than]
    with c.database.read() as connection:
        wanted = blobs_wanted(connection)
    orphans = [sha256 for sha256 in old if sha256 not in wanted]
    return len(orphans), sum(c.blobs.delete(sha256) for sha256 in orphans)
