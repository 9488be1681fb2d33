"""Seedings: batches of tasks that an operator cut ahead of demand, and which task belongs to which."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "seedings",
        sa.Column("id", Id, autoincrement=True, nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.Column("examples", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.Column("made_by", sa.String(64), nullable=False),
        sa.Column("withdrawn_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_seedings_run_id_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_seedings")),
    )
    op.add_column("tasks", sa.Column("seeding", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_tasks_seeding"), "tasks", ["seeding"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_tasks_seeding"), "tasks")
    op.drop_column("tasks", "seeding")
    op.drop_table("seedings")
