"""Gates, trust, credit and lineages: what an update weighs and earns, and what a rollback gave up.

A worker that has delivered before is no newcomer: it keeps its full weight.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OLD_VERDICTS = "'accepted', 'too_late', 'stale', 'rejected'"
NEW_VERDICTS = "'accepted', 'compared', 'too_late', 'stale', 'rejected'"


def added() -> dict[str, list[sa.Column[Any]]]:
    """New objects each time: a column belongs to one table."""
    return {
        "runs": [
            sa.Column("gates", sa.JSON(), nullable=False, server_default="[]"),
            sa.Column("paused_because", sa.String(400), nullable=False, server_default=""),
        ],
        "versions": [
            sa.Column("lineage", sa.Integer(), nullable=False, server_default="1"),
            sa.Column("restores", sa.BigInteger(), nullable=True),
            sa.Column("automatic", sa.Boolean(), nullable=False, server_default=sa.false()),
            sa.Column("active_seconds", sa.Double(), nullable=True),
        ],
        "tasks": [sa.Column("parent", sa.BigInteger(), nullable=True)],
        "workers": [
            sa.Column("standing", sa.String(16), nullable=False, server_default="probation"),
            sa.Column("trust", sa.Double(), nullable=False, server_default="1"),
            sa.Column("trust_to_go", sa.Integer(), nullable=False, server_default="3"),
            sa.Column("trust_reason", sa.String(200), nullable=False, server_default="new here"),
            sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()),
        ],
        "reports": [
            sa.Column("weight", sa.Double(), nullable=False, server_default="1"),
            sa.Column("clip", sa.Double(), nullable=False, server_default="1"),
            sa.Column("credited", sa.BigInteger(), nullable=False, server_default="0"),
            sa.Column("payload_sha256", sa.String(64), nullable=True),
            sa.Column("discarded_in", sa.BigInteger(), nullable=True),
        ],
    }


def upgrade() -> None:
    for table, columns in added().items():
        for column in columns:
            op.add_column(table, column)
    _verdicts(NEW_VERDICTS)
    op.create_index("ix_reports_payload", "reports", ["payload_sha256"])
    op.execute("UPDATE reports SET credited = tokens WHERE verdict <> 'rejected'")
    op.execute(
        "UPDATE workers SET standing = 'steady', trust_to_go = 0, trust_reason = '' "
        "WHERE id IN (SELECT worker FROM reports WHERE verdict = 'accepted')"
    )


def downgrade() -> None:
    op.execute("UPDATE reports SET verdict = 'too_late' WHERE verdict = 'compared'")
    op.drop_index("ix_reports_payload", "reports")
    _verdicts(OLD_VERDICTS)
    for table, columns in added().items():
        for column in columns:
            op.drop_column(table, column.name)


def _verdicts(allowed: str) -> None:
    """SQLite cannot change a check: its table is copied, and nothing refers to this one."""
    name = op.f("ck_reports_verdict_known")
    with op.batch_alter_table("reports", schema=None) as batch_op:
        batch_op.drop_constraint(name, type_="check")
        batch_op.create_check_constraint(name, f"verdict IN ({allowed})")
