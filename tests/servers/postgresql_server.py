"""A real PostgreSQL server for the tests marked `postgres`; they are skipped where its programs are missing.

Each test process starts a server of its own when the first test asks for it, and each test gets a fresh
database in it, made from one that is migrated. Nothing waits for the disk: a killed process loses nothing by
that, only a power cut would. A conftest that imports the two fixtures offers them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

PASSWORD = "pg-s3cret-of-the-tests"
QUICK = ("fsync=off", "full_page_writes=off", "max_connections=60", "autovacuum=off", "shared_buffers=32MB")


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`. Debian keeps them out of the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


def owner() -> str | None:
    """The server refuses to run as root; None: as ourselves."""
    return "postgres" if os.name == "posix" and os.geteuid() == 0 else None


@dataclass
class PostgresServer:
    """A server on a port of this machine. `kill` ends it as a crash does; `start` brings it back."""

    folder: Path
    bin: Path
    port: int = 0
    popen: subprocess.Popen[bytes] | None = None
    databases: list[str] = field(default_factory=list)

    @property
    def _as(self) -> dict[str, Any]:
        user = owner()
        return {"cwd": self.folder} | ({"user": user, "group": user, "extra_groups": []} if user else {})

    def create(self) -> None:
        if owner():
            shutil.chown(self.folder, owner(), owner())
        word = self.folder / "password"
        word.write_text(PASSWORD)
        word.chmod(0o644)
        subprocess.run(
            [
                *(self.bin / "initdb", "-D", self.folder / "data", "-U", "bithaul", "--pwfile", word),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            **self._as,
        )
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.start()

    def start(self) -> None:
        options = ["-p", str(self.port), "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1"]
        for setting in QUICK:
            options += ["-c", setting]
        until = time.monotonic() + 60
        while True:
            if self.popen is None or self.popen.poll() is not None:  # the dead one's memory is still in use
                with (self.folder / "log").open("ab") as log:
                    self.popen = subprocess.Popen(
                        [self.bin / "postgres", "-D", self.folder / "data", *options],
                        stdout=log,
                        stderr=log,
                        **self._as,
                    )
            if self._answers():
                return
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        import psycopg

        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to all of it at once."""
        if self.popen is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.popen.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.popen.kill()
        self.popen.wait(30)

    def connect(self, database: str) -> Any:
        """A connection of the driver that commits every statement."""
        import psycopg

        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="bithaul",
            password=PASSWORD,
            dbname=database,
            connect_timeout=5,
            autocommit=True,
        )

    def url(self, database: str) -> str:
        return f"postgresql://bithaul:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str, *, database: str = "postgres") -> None:
        with contextlib.closing(self.connect(database)) as connection:
            connection.execute(statement)

    def make(self, name: str) -> str:
        """The URL of a new, empty database that stays until the server stops."""
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def dump(self, database: str) -> bytes:
        """Every row of every table, as text."""
        with contextlib.closing(self.connect(database)) as connection:
            query = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"
            tables = [name for (name,) in connection.execute(query)]
            rows = [
                row for table in tables for (row,) in connection.execute(f"SELECT t::text FROM {table} t")
            ]
        return "\n".join(rows).encode()

    def fresh(self, *, migrated: bool = True, template: str = "") -> str:
        """The URL of a new database: a copy of `template`, else with the tables, unless told otherwise."""
        if template:
            return self._copy(template)
        if migrated and "template" not in self.databases:
            from bithaul.coordinator.database.engine import Database

            self.run("CREATE DATABASE template")
            Database.open(self.url("template"), lock_folder=self.folder).close()
            self.databases.append("template")
        return self._copy("template" if migrated else "template1")

    def _copy(self, template: str) -> str:
        name = f"t{len(self.databases)}_{secrets.token_hex(4)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        self.databases.append(name)
        return self.url(name)

    def drop(self) -> None:
        """Forget the databases of a test, whoever is still connected."""
        for name in [name for name in self.databases if name != "template"]:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")
            self.databases.remove(name)


_running: list[PostgresServer] = []  # one, whichever conftest asked first


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg", reason="the driver is not installed: pip install 'bithaul[postgres]'")
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server is installed here (initdb and postgres are not found)")
    if not _running:
        server = PostgresServer(Path(tempfile.mkdtemp(prefix="bithaul-postgres-")), found)
        _running.append(server)
        server.create()
    yield _running[0]
    _running[0].kill()
    shutil.rmtree(_running[0].folder, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """The server of this test process, with no database of another test in it."""
    yield postgres_server
    postgres_server.drop()
