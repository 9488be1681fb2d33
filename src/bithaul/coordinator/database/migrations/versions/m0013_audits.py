"""The audit: which tasks are repeated by another worker, and how alike the two runs were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("audit", "repeat"):
        op.add_column("leases", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("leases", sa.Column("repeats", sa.BigInteger(), nullable=True))
    op.add_column("workers", sa.Column("audits", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("workers", sa.Column("streak", sa.Integer(), nullable=False, server_default="0"))
    op.create_index(
        "ix_leases_repeat",
        "leases",
        ["id"],
        sqlite_where=sa.text("repeat = 1"),  # as SQLAlchemy asks for it
        postgresql_where=sa.text("repeat"),
    )
    known = sa.text("repeats IS NOT NULL")
    op.create_index("ix_leases_repeats", "leases", ["repeats"], sqlite_where=known, postgresql_where=known)
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "repetitions",
        sa.Column("first", number, nullable=False),
        sa.Column("second", number, nullable=False),
        sa.Column("run_id", number, nullable=False),
        sa.Column("task_id", number, nullable=False),
        sa.Column("worker", sa.String(64), nullable=False),
        sa.Column("repeated_by", sa.String(64), nullable=False),
        sa.Column("likeness", sa.Double(), nullable=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["first"], ["reports.seq"], name=op.f("fk_repetitions_first_reports")),
        sa.ForeignKeyConstraint(["second"], ["reports.seq"], name=op.f("fk_repetitions_second_reports")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_repetitions_run_id_runs")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_repetitions_task_id_tasks")),
        sa.ForeignKeyConstraint(["worker"], ["workers.id"], name=op.f("fk_repetitions_worker_workers")),
        sa.ForeignKeyConstraint(
            ["repeated_by"], ["workers.id"], name=op.f("fk_repetitions_repeated_by_workers")
        ),
        sa.PrimaryKeyConstraint("first", name=op.f("pk_repetitions")),
        sa.UniqueConstraint("second", name=op.f("uq_repetitions_second")),
    )
    op.create_index(op.f("ix_repetitions_task_id"), "repetitions", ["task_id"])
    op.create_index(op.f("ix_repetitions_repeated_by"), "repetitions", ["repeated_by"])
    op.create_index("ix_repetitions_worker", "repetitions", ["worker", "second"])


def downgrade() -> None:
    op.drop_table("repetitions")
    op.drop_index("ix_leases_repeats", "leases")
    op.drop_index("ix_leases_repeat", "leases")
    op.drop_column("workers", "streak")
    op.drop_column("workers", "audits")
    op.drop_column("leases", "repeats")
    op.drop_column("leases", "repeat")
    op.drop_column("leases", "audit")
