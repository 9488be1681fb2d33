"""Tables of the run: versions, positions, tasks, leases, the ledger of reports, workers and what they say.

Times are seconds since the epoch (double precision: microseconds). Rows of leases and reports stay: they
are the history. Partial unique indexes hold the two promises that matter most even against a defect: one
open lease per task, one accepted report per task.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    false,
    text,
)

from bithaul.coordinator.database.metadata import metadata

Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only INTEGER keys


def _states(*names: str) -> str:
    return "state IN (" + ", ".join(f"'{n}'" for n in names) + ")"


runs = Table(
    "runs",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("model", JSON, nullable=False),
    Column("recipe", JSON, nullable=False),
    Column("layout_hash", String(64), nullable=False),
    Column("tokenizer_sha256", String(64), nullable=False),
    Column("label_token", Integer),
    Column("codec", String(64), nullable=False),
    Column("weights", String(16), nullable=False, server_default="fp32"),  # how versions are published
    Column("merge_rule", String(64), nullable=False),
    Column("merge_options", JSON, nullable=False),
    Column("budget_tokens", Double),
    Column("budget_seconds", Double),
    Column("task_seconds", Double, nullable=False),
    Column("probe_every", Integer, nullable=False),
    Column("max_update_norm", Double),
    Column("gates", JSON, nullable=False, server_default="[]"),  # names of those switched on
    Column("paused_because", String(400), nullable=False, server_default=""),  # when no person paused it
    Column("seed", BigInteger, nullable=False),
    Column("tokens_per_example", Double, nullable=False),
    Column("position_block", Integer, nullable=False),  # examples that stay together in every pass
    Column("position_cursor", BigInteger, nullable=False),  # positions below were cut at least once
    Column("active_seconds", Double, nullable=False),  # time in which somebody worked, over all restarts
    Column("active_anchor", Double),  # until when active_seconds counts; None: nobody works
    Column("created_at", Double, nullable=False),
    CheckConstraint(_states("ready", "running", "paused", "finished"), name="state_known"),
)

shards = Table(
    "shards",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),  # train, heldout or probe
    Column("ordinal", Integer, nullable=False),
    Column("examples", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("index_size", BigInteger, nullable=False),
    Column("index_sha256", String(64), nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("sha256", String(64), nullable=False),  # of the file that workers fetch
    Column("size", BigInteger, nullable=False),
    Column("theta_sha256", String(64)),  # the float32 vector behind it, the same file for fp32; None: retired
    Column("momentum_sha256", String(64)),  # None when the rule keeps none, or retired
    Column("retired_at", Double),  # the weights were deleted
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("created_at", Double, nullable=False),
    Column("reports", Integer, nullable=False),
    Column("contributors", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),  # in this version's updates
    Column("tokens_total", BigInteger, nullable=False),
    Column("staleness", Double, nullable=False),  # token-weighted mean
    Column("step_norm", Double, nullable=False),  # |theta_v - theta_(v-1)|
    Column("train_loss", Double),
    Column("heldout_loss", Double),
    Column("heldout_tokens", BigInteger),
    Column("probe_leased_at", Double),  # a worker was asked to measure it
    Column("merge_seconds", Double, nullable=False),
    Column("outer_step", JSON),  # the numbers of the step that made it; None when no step did
    Column("lineage", Integer, nullable=False, server_default="1"),  # counts up at each rollback
    Column("restores", BigInteger),  # the version whose weights a rollback put in force again
    Column("automatic", Boolean, nullable=False, server_default=false()),  # that rollback
    Column("active_seconds", Double),  # of the run when it was made
    Column("delta_sha256", String(64)),  # the way from the version before; None: there is none, or retired
)

returned = Table(  # positions below the cursor that nobody has; disjoint, joined
    "returned_positions",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("start", BigInteger, primary_key=True),
    Column("count", BigInteger, nullable=False),
    CheckConstraint("count > 0", name="count_positive"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("positions", JSON, nullable=False),  # [[start, count], ...]; after acceptance the used ones
    Column("examples", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),  # expiries and reported failures
    Column("failed_by", JSON, nullable=False),  # workers that failed it
    Column("reason", String(200), nullable=False),
    Column("parent", BigInteger),  # the discarded task whose slice this one has
    Column("seeding", BigInteger, index=True),  # the operator's batch it was cut in
    Column("created_at", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
    CheckConstraint(
        _states("pending", "leased", "accepted", "merged", "failed", "cancelled", "discarded"),
        name="state_known",
    ),
    Index("ix_tasks_run_state", "run_id", "state"),
)

seedings = Table(  # batches of tasks that an operator cut ahead of demand
    "seedings",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("tasks", Integer, nullable=False),
    Column("examples", BigInteger, nullable=False),  # of each task
    Column("first", BigInteger, nullable=False),  # position
    Column("last", BigInteger, nullable=False),
    Column("made_at", Double, nullable=False),
    Column("made_by", String(64), nullable=False),
    Column("withdrawn_at", Double),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(64), primary_key=True),  # the client id of its credential
    Column("ready", Boolean, nullable=False),  # layout hash and formats agreed, calibrated
    Column("drained", Boolean, nullable=False),
    Column("gone", Boolean, nullable=False),
    Column("capabilities", JSON),
    Column("calibrated_speed", Double, nullable=False),  # tokens per second, as the worker says
    Column("speed", Double, nullable=False),  # EWMA over accepted reports; 0 before the first
    Column("activity", String(16), nullable=False),
    Column("failures", Integer, nullable=False),  # in a row
    Column("rest_until", Double, nullable=False),
    Column("standing", String(16), nullable=False, server_default="probation"),
    Column("trust", Double, nullable=False, server_default="1"),  # the score, 0 to 1
    Column("trust_to_go", Integer, nullable=False, server_default="3"),  # reports left of the probation
    Column("trust_reason", String(200), nullable=False, server_default="new here"),
    Column("pinned", Boolean, nullable=False, server_default=false()),  # by the operator, at weight 1
    Column("audits", Boolean, nullable=False, server_default=false()),  # its software knows audit tasks
    Column("streak", Integer, nullable=False, server_default="0"),  # accepted reports without a doubt since
    Column("score", Double, nullable=False, server_default="0"),  # average of its loss scores, -1 to 1
    Column("scored", Integer, nullable=False, server_default="0"),  # how many are in it
    Column("instance", String(32)),  # which state folder has the identity; None: its software has none
    Column("registered_at", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("task_id", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("worker", ForeignKey("workers.id"), nullable=False),
    Column("fence", String(32), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("base_version", BigInteger, nullable=False),
    Column("granted_at", Double, nullable=False),
    Column("deadline", Double, nullable=False),
    Column("last_deadline", Double, nullable=False),  # renewal never goes beyond
    Column("ended_at", Double),
    Column("reason", String(200), nullable=False),
    Column("tokens", BigInteger, nullable=False),  # progress of the last heartbeat
    Column("moved_at", Double),  # when a heartbeat last told of more tokens; None before the first
    Column("expected_tokens", Double, nullable=False),
    Column("aimed_at", Double, nullable=False),  # planned end; a round waits for leases aimed at its tick
    Column("soft_stop_seconds", Double, nullable=False),
    Column("progress_start", Double, nullable=False),
    Column("progress_end", Double, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("probe", Boolean, nullable=False),
    Column("audit", Boolean, nullable=False, server_default=false()),  # fresh moments, no residual
    Column("repeat", Boolean, nullable=False, server_default=false()),  # another worker shall repeat it
    Column("repeats", BigInteger),  # the report whose task is run again; None: ordinary work
    CheckConstraint(
        _states("open", "reported", "expired", "released", "superseded", "revoked"), name="state_known"
    ),
    Index("ix_leases_worker_state", "worker", "state"),
    Index("ix_leases_state_run", "state", "run_id", "base_version"),
    Index("ix_leases_run_base", "run_id", "base_version", "id"),
    Index(  # the few that wait to be repeated
        "ix_leases_repeat", "id", sqlite_where=text("repeat = 1"), postgresql_where=text("repeat")
    ),
    Index(
        "ix_leases_repeats",
        "repeats",
        sqlite_where=text("repeats IS NOT NULL"),
        postgresql_where=text("repeats IS NOT NULL"),
    ),
    Index(
        "uq_leases_open_task",
        "task_id",
        unique=True,
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
)

reports = Table(  # the ledger: one row per receipt, in the order of judgement
    "reports",
    metadata,
    Column("seq", Id, primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("lease_id", ForeignKey("leases.id"), nullable=False, unique=True),
    Column("worker", ForeignKey("workers.id"), nullable=False),
    Column("fence", String(32), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("code", String(64), nullable=False),
    Column("reason", String(400), nullable=False),
    Column("received_at", Double, nullable=False),
    Column("base_version", BigInteger, nullable=False),
    Column("staleness", Integer, nullable=False),
    Column("examples", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("steps", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("loss_first", Double, nullable=False),
    Column("loss_last", Double, nullable=False),
    Column("loss_mean", Double, nullable=False),
    Column("norm", Double, nullable=False),
    Column("weight", Double, nullable=False, server_default="1"),  # its worker's trust at acceptance
    Column("clip", Double, nullable=False, server_default="1"),  # a gate's factor on the update
    Column("credited", BigInteger, nullable=False, server_default="0"),  # tokens
    Column("payload_sha256", String(64)),  # without the frame's head: what a copy shares
    Column("blob_sha256", String(64)),  # the whole frame; None when it was not kept or was retired
    Column("merged_in", BigInteger),
    Column("agreement", Double),  # cosine to momentum or to the others of its version; None: not looked at
    Column("discarded_in", BigInteger),  # the version of the rollback that gave it up
    Column("to_score", Boolean, nullable=False, server_default=false()),  # its loss score is waited for
    CheckConstraint(
        "verdict IN ('accepted', 'compared', 'too_late', 'stale', 'rejected')", name="verdict_known"
    ),
    Index("ix_reports_run_merged", "run_id", "verdict", "merged_in"),
    Index("ix_reports_run_seq", "run_id", "verdict", "seq"),
    Index("ix_reports_worker", "worker"),
    Index("ix_reports_task", "task_id"),
    Index(  # the few that did not count, newest first
        "ix_reports_refused",
        "run_id",
        "seq",
        sqlite_where=text("verdict <> 'accepted'"),
        postgresql_where=text("verdict <> 'accepted'"),
    ),
    Index("ix_reports_fence", "fence"),
    Index(  # the few that wait for a score
        "ix_reports_to_score", "seq", sqlite_where=text("to_score = 1"), postgresql_where=text("to_score")
    ),
    Index("ix_reports_payload_run", "payload_sha256", "run_id", "verdict"),
    Index(
        "uq_reports_accepted_task",
        "task_id",
        unique=True,
        sqlite_where=text("verdict = 'accepted'"),
        postgresql_where=text("verdict = 'accepted'"),
    ),
)

repetitions = Table(  # the audit: two runs of one task by two workers, compared
    "repetitions",
    metadata,
    Column("first", ForeignKey("reports.seq"), primary_key=True),  # the report that was merged
    Column("second", ForeignKey("reports.seq"), nullable=False, unique=True),  # the one that was compared
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("task_id", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("worker", ForeignKey("workers.id"), nullable=False),  # of the first
    Column("repeated_by", ForeignKey("workers.id"), nullable=False, index=True),  # of the second
    Column("likeness", Double, nullable=False),  # -1 to 1
    Column("made_at", Double, nullable=False),
    Index("ix_repetitions_worker", "worker", "second"),
)

scores = Table(  # what an update does to the loss on its own examples and on others
    "scores",
    metadata,
    Column("report", ForeignKey("reports.seq"), primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("worker", ForeignKey("workers.id"), nullable=False),
    Column("own", Double, nullable=False),  # fall of the loss on examples of its task, nats a token
    Column("other", Double, nullable=False),  # on as many that it was not given
    Column("score", Double, nullable=False),  # what becomes of the two, -1 to 1
    Column("seconds", Double, nullable=False),  # that it took here
    Column("made_at", Double, nullable=False),
    Index("ix_scores_made", "run_id", "made_at"),
)

telemetry = Table(
    "telemetry",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("time", Double, nullable=False, index=True),
    Column("worker", String(64), nullable=False),
    Column("task_id", BigInteger),
    Column("tokens", BigInteger, nullable=False),
    Column("tokens_per_second", Double, nullable=False),
    Column("loss", Double),
)

logs = Table(
    "logs",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("received_at", Double, nullable=False, index=True),
    Column("time", Double, nullable=False),  # the worker's clock
    Column("worker", String(64), nullable=False),
    Column("level", String(16), nullable=False),
    Column("event", String(200), nullable=False),
    Column("fields", Text, nullable=False),  # JSON object
    Index("ix_logs_worker_received", "worker", "received_at"),
    Index("ix_logs_level", "level", "id"),
    Index("ix_logs_worker_level", "worker", "level", "id"),
)

service_results = Table(
    "service_results",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("ok", Boolean, nullable=False),
    Column("message", String(400), nullable=False),
    Column("finished_at", Double, nullable=False),
    Column("seconds", Double, nullable=False),
)
