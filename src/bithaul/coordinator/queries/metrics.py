"""The figures behind GET /metrics, as plain samples; the door renders them for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import fleet, ledger, runs, services, versions, work

GAUGE, COUNTER = "gauge", "counter"


@dataclass(frozen=True)
class Sample:
    """One value. `name` has no `bithaul_` prefix; `kind` is gauge or counter."""

    name: str
    kind: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def metrics(c: Coordinator) -> list[Sample]:
    """Works without a run too; then only what exists is told."""
    out = [Sample("disk_free_bytes", GAUGE, "Free space where blobs go.", c.blobs.free_bytes())]
    now = c.clock.now()
    with c.database.read() as connection:
        for row in services.list_results(connection):
            labels = {"service": row.name}
            out.append(
                Sample("service_ok", GAUGE, "Whether the last run of a service succeeded.", row.ok, labels)
            )
            out.append(Sample("service_finished_seconds", GAUGE, "When it ended.", row.finished_at, labels))
        run = runs.find_run(connection)
        if run is None:
            return out
        newest = versions.newest_version(connection, run.id)
        merged = runs.spent(connection, run.id).merged
        out += [
            Sample("version", GAUGE, "Newest weight version.", newest.version),
            Sample("progress_ratio", GAUGE, "Share of the budget used.", run.progress_at(now, tokens=merged)),
            Sample("tokens_total", COUNTER, "Tokens in merged updates.", merged),
            Sample("open_leases", GAUGE, "Leases now open.", len(work.open_leases(connection, run.id))),
            Sample("round_contributors", GAUGE, "Workers in the newest version.", newest.contributors),
            Sample("round_staleness", GAUGE, "Mean staleness in the newest version.", newest.staleness),
            Sample("round_step_norm", GAUGE, "Length of the newest outer step.", newest.step_norm),
            Sample("merge_seconds", GAUGE, "Time of the newest merge.", newest.merge_seconds),
        ]
        if newest.train_loss is not None:
            out.append(
                Sample("train_loss", GAUGE, "Loss of the newest version's updates.", newest.train_loss)
            )
        for state, count in work.task_counts(connection, run.id).items():
            out.append(Sample("tasks", GAUGE, "Tasks by state.", count, {"state": state}))
        for verdict, count in ledger.verdict_counts(connection, run.id).items():
            out.append(Sample("receipts_total", COUNTER, "Receipts by verdict.", count, {"verdict": verdict}))
        earned = ledger.credits_by_worker(connection, run.id)
        for worker in fleet.list_workers(connection):
            labels = {"worker": worker.id}
            out.append(Sample("worker_tokens_per_second", GAUGE, "Measured speed.", worker.speed, labels))
            if worker.id in earned:
                out.append(
                    Sample(
                        "worker_updates_total",
                        COUNTER,
                        "Accepted updates.",
                        earned[worker.id].accepted,
                        labels,
                    )
                )
    return out
