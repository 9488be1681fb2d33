"""What pages ask of the audit log and of the ledger is found by an index, however long they have become."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

REFUSED = sa.text("verdict <> 'accepted'")


def upgrade() -> None:
    op.create_index("ix_audit_action", "audit", ["action", "id"])
    op.create_index("ix_audit_actor", "audit", ["actor", "id"])
    op.create_index("ix_reports_task", "reports", ["task_id"])
    op.create_index(
        "ix_reports_refused", "reports", ["run_id", "seq"], sqlite_where=REFUSED, postgresql_where=REFUSED
    )


def downgrade() -> None:
    op.drop_index("ix_reports_refused", "reports")
    op.drop_index("ix_reports_task", "reports")
    op.drop_index("ix_audit_actor", "audit")
    op.drop_index("ix_audit_action", "audit")
