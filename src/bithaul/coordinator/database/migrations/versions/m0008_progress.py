"""When a lease last got further stands in its row: pages need not look for it in the telemetry."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("moved_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("leases", "moved_at")
