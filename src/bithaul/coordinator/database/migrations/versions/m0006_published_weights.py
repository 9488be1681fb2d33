"""How a run publishes its weights, and the float32 vector behind each version.

Until now a version's file was that vector itself.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("weights", sa.String(16), nullable=False, server_default="fp32"))
    op.add_column("versions", sa.Column("theta_sha256", sa.String(64), nullable=True))
    op.execute("UPDATE versions SET theta_sha256 = sha256 WHERE retired_at IS NULL")


def downgrade() -> None:
    op.drop_column("versions", "theta_sha256")
    op.drop_column("runs", "weights")
