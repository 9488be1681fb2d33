"""Bring the schema up to date, or down again, with the migrations shipped inside the package.

Two processes that start together do not migrate twice: a file lock in the run's folder guards it, and on
PostgreSQL the lock of all writers too, since its clients may have folders of their own. A database made by a
newer bithaul is refused, never guessed at.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from filelock import FileLock
from sqlalchemy import Connection, Engine

from bithaul.coordinator.database import postgres
from bithaul.errors import InvalidConfig

LOCK_SECONDS = 60.0
TABLE_MODULES = ("bithaul.coordinator.database.tables", "bithaul.coordinator.identity.tables")


def import_tables() -> None:
    """Fill the shared metadata. By name, because `identity` lies above this room."""
    for module in TABLE_MODULES:
        importlib.import_module(module)


def upgrade(engine: Engine, *, lock_folder: Path, revision: str = "head") -> None:
    """Migrate up to `revision`. Raises `InvalidConfig` when the database is newer than this program."""
    with FileLock(lock_folder / "migrate.lock"), engine.connect() as connection:
        _alone(connection)
        config = _config(connection)
        known = {s.revision for s in ScriptDirectory.from_config(config).walk_revisions()}
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in known:
            raise InvalidConfig(
                f"The database has schema {current}, which this bithaul does not know; "
                "install the version that made it."
            )
        command.upgrade(config, revision)
        connection.commit()


def downgrade(engine: Engine, *, lock_folder: Path, revision: str) -> None:
    """Migrate down to `revision` ("base" drops everything). Raises `InvalidConfig` for an unknown one."""
    with FileLock(lock_folder / "migrate.lock"), engine.connect() as connection:
        _alone(connection)
        try:
            command.downgrade(_config(connection), revision)
        except CommandError as error:
            raise InvalidConfig(f"There is no schema revision {revision!r}: {error}.") from error
        connection.commit()


def _alone(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        postgres.take_turn(connection, durable=True, timeout=LOCK_SECONDS)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
