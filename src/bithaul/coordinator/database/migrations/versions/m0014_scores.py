"""The loss score: which reports wait for one, what it was, and each worker's average."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("score", sa.Double(), nullable=False, server_default="0"))
    op.add_column("workers", sa.Column("scored", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("reports", sa.Column("to_score", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index(
        "ix_reports_to_score",
        "reports",
        ["seq"],
        sqlite_where=sa.text("to_score = 1"),  # as SQLAlchemy asks for it
        postgresql_where=sa.text("to_score"),
    )
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "scores",
        sa.Column("report", number, nullable=False),
        sa.Column("run_id", number, nullable=False),
        sa.Column("worker", sa.String(64), nullable=False),
        sa.Column("own", sa.Double(), nullable=False),
        sa.Column("other", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["report"], ["reports.seq"], name=op.f("fk_scores_report_reports")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_scores_run_id_runs")),
        sa.ForeignKeyConstraint(["worker"], ["workers.id"], name=op.f("fk_scores_worker_workers")),
        sa.PrimaryKeyConstraint("report", name=op.f("pk_scores")),
    )
    op.create_index("ix_scores_made", "scores", ["run_id", "made_at"])


def downgrade() -> None:
    op.drop_table("scores")
    op.drop_index("ix_reports_to_score", "reports")
    op.drop_column("reports", "to_score")
    op.drop_column("workers", "scored")
    op.drop_column("workers", "score")
