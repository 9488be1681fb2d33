"""Log entries are found by their level: a few errors among a million no longer take a look at each."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_logs_level", "logs", ["level", "id"])
    op.create_index("ix_logs_worker_level", "logs", ["worker", "level", "id"])


def downgrade() -> None:
    op.drop_index("ix_logs_worker_level", "logs")
    op.drop_index("ix_logs_level", "logs")
