"""Which of the machines with one key is the worker."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("instance", sa.String(32), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "instance")
