"""How a session was opened, so that it ends with that way in; when it ends at the latest.

Sessions from before count as opened by password: under a foreign provider they end with the next start.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("way", sa.Text(), nullable=False, server_default=""))
    op.add_column("sessions", sa.Column("ends_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("sessions", "ends_at")
    op.drop_column("sessions", "way")
