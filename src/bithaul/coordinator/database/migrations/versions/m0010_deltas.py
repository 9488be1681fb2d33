"""The way from one published version to the next, for runs that publish deltas; how far updates agree."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("reports", sa.Column("agreement", sa.Double(), nullable=True))
    op.add_column("versions", sa.Column("delta_sha256", sa.String(64), nullable=True))


def downgrade() -> None:
    op.drop_column("versions", "delta_sha256")
    op.drop_column("reports", "agreement")
