"""Indexes for what every claim, report and merge asks: their cost no longer grows with a run's history."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_leases_run_base", "leases", ["run_id", "base_version", "id"])
    op.create_index("ix_leases_state_run", "leases", ["state", "run_id", "base_version"])
    op.drop_index("ix_leases_state_base", "leases")
    op.create_index("ix_reports_run_seq", "reports", ["run_id", "verdict", "seq"])
    op.create_index("ix_reports_fence", "reports", ["fence"])
    op.create_index("ix_reports_payload_run", "reports", ["payload_sha256", "run_id", "verdict"])
    op.drop_index("ix_reports_payload", "reports")


def downgrade() -> None:
    op.create_index("ix_reports_payload", "reports", ["payload_sha256"])
    op.drop_index("ix_reports_payload_run", "reports")
    op.drop_index("ix_reports_fence", "reports")
    op.drop_index("ix_reports_run_seq", "reports")
    op.create_index("ix_leases_state_base", "leases", ["state", "base_version"])
    op.drop_index("ix_leases_state_run", "leases")
    op.drop_index("ix_leases_run_base", "leases")
