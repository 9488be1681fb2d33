"""Alembic's entry point: runs on the connection that `database.migrate` puts into the configuration."""

from __future__ import annotations

from alembic import context

from bithaul.coordinator.database.metadata import metadata
from bithaul.coordinator.database.migrate import import_tables

import_tables()
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
