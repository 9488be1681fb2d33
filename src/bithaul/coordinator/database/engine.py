"""The database handle: one writer connection that serialises every decision, and readers beside it.

SQLite runs in WAL mode. The writer begins with BEGIN IMMEDIATE, so a transaction that reads and then writes
never fails half-way, and syncs fully, because it stores receipts and versions. Readers have their own engine
and never wait for the writer. PostgreSQL keeps the same promises its own way (`database.postgres`).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, RootTransaction, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from bithaul.coordinator.database import postgres
from bithaul.coordinator.database.migrate import upgrade
from bithaul.coordinator.database.prepared import Prepared
from bithaul.errors import CorruptFile, OutOfDisk, Unavailable

READERS = 16
WRITE_TIMEOUT = 30.0  # seconds to wait for one's turn


class Database:
    """`read()` and `write()` are transactions: write commits on exit and rolls back on any exception."""

    def __init__(self, reader: Engine, writer: Engine) -> None:
        self._reader = reader
        self._writer = writer
        self._sqlite = writer.dialect.name == "sqlite"
        self._turn = threading.Lock()  # of this process's one connection that writes
        self._kept: Connection | None = None
        self._synced = True
        self._leadership = None if self._sqlite else postgres.Leadership(writer)

    @classmethod
    def open(cls, url: str, *, lock_folder: Path) -> Database:
        """Connect and migrate to the newest schema. Raises `InvalidConfig`, `Unavailable`, `CorruptFile`."""
        server = postgres.server_url(url)
        if server is None:
            reader, writer = _sqlite(url, immediate=False), _sqlite(url, immediate=True)
        else:
            reader, writer = postgres.engines(server, readers=READERS, timeout=WRITE_TIMEOUT)
        try:
            upgrade(writer, lock_folder=lock_folder)
        except BaseException as error:
            reader.dispose()
            writer.dispose()
            if not isinstance(error, DatabaseError):
                raise
            if server is not None:
                plain = postgres.plainly(error, starting=True)
                said = " ".join(str(error.orig).split())
                raise plain or Unavailable(f"The database cannot be used ({said}).") from error
            if isinstance(error, OperationalError):
                raise Unavailable(f"The database cannot be opened: {error.orig}.") from error
            raise CorruptFile(
                f"The database is damaged ({error.orig}); restore a backup or use another folder."
            ) from error
        return cls(reader, writer)

    @property
    def writer_engine(self) -> Engine:
        """For migrations and backup; use cases use `write`."""
        return self._writer

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view; nothing written in it is kept."""
        with _translated(reads=True), self._reader.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """The only place where rows change. Raises `OutOfDisk` or `Unavailable` when it cannot.

        Not `durable`: the database does not wait for the disk, so a power cut, or a crash of PostgreSQL, may
        undo it; the next durable write takes it along, and a killed coordinator loses nothing. For what
        repeats itself, such as a heartbeat.
        """
        with _translated(), self._my_turn():
            transaction = self._begin(durable=durable)
            with self._kept_whole(), transaction:
                yield transaction.connection

    def _begin(self, *, durable: bool) -> RootTransaction:
        if self._sqlite:
            return self._begin_sqlite(durable=durable)
        had = self._kept is not None
        try:
            return self._begin_postgres(durable=durable)
        except DBAPIError:
            if not had or self._kept is not None:
                raise
        return self._begin_postgres(durable=durable)  # the server had hung up, and nothing was said yet

    def _begin_sqlite(self, *, durable: bool) -> RootTransaction:
        if self._kept is None:
            self._kept = self._writer.connect()
            self._synced = True
        if durable is not self._synced:
            _raw(self._kept).execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}").close()
            self._synced = durable
        return self._kept.begin()

    def _begin_postgres(self, *, durable: bool) -> RootTransaction:
        if self._kept is None:
            self._kept = self._writer.connect()
        with self._kept_whole():
            transaction = self._kept.begin()
            try:
                postgres.take_turn(self._kept, durable=durable, timeout=WRITE_TIMEOUT)
            except BaseException:
                transaction.rollback()
                raise
        return transaction

    @contextmanager
    def _kept_whole(self) -> Iterator[None]:
        """A connection whose server has hung up is given away, so that the next write gets a new one."""
        try:
            yield
        except BaseException:
            if not self._sqlite and self._kept is not None and postgres.is_lost(self._kept):
                kept, self._kept = self._kept, None
                kept.invalidate()
                kept.close()
            raise

    def lead(self) -> bool:
        """Whether this process may run the services; on SQLite a lock of the run's folder has settled it."""
        if self._leadership is None:
            return True
        with _translated():
            return self._leadership.hold()

    def resign(self) -> None:
        """Another process may run the services now."""
        if self._leadership is not None:
            self._leadership.release()

    def shrink(self) -> None:
        """Give freed pages back to the file system (SQLite); elsewhere the database does it by itself."""
        if self._sqlite:
            with _translated(), self._writer.connect() as connection:
                raw = _raw(connection)
                raw.execute("PRAGMA incremental_vacuum").fetchall()
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """Taking the connection from the pool and giving it back costs ten times what a small write does."""
        if not self._turn.acquire(timeout=WRITE_TIMEOUT):
            raise Unavailable("The database is busy; try again.")
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        with self._my_turn():
            if self._kept is not None:
                self._kept.close()
                self._kept = None
        self.resign()
        self._reader.dispose()
        self._writer.dispose()


def _raw(connection: Connection) -> sqlite3.Connection:
    found = connection.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)
    return found


@contextmanager
def _translated(*, reads: bool = False) -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("The database is busy; try again.") from error
    except OperationalError as error:
        _raise_plainly(error, reads=reads)
        text = str(error.orig)
        if "full" in text:
            raise OutOfDisk("The coordinator's disk is full; free some space and try again.") from error
        if "locked" in text or "busy" in text:
            raise Unavailable("The database is busy; try again.") from error
        raise
    except DBAPIError as error:
        _raise_plainly(error, reads=reads)
        if "full" in str(error.orig):
            raise OutOfDisk("The coordinator's disk is full; free some space and try again.") from error
        raise


def _raise_plainly(error: DBAPIError, *, reads: bool) -> None:
    """An error of PostgreSQL that a person can do something about, by its code."""
    if isinstance(error.orig, sqlite3.Error):
        return
    plain = postgres.plainly(error, reads=reads)
    if plain is not None:
        raise plain from error


def _sqlite(url: str, *, immediate: bool) -> Engine:
    pool = {"pool_size": 1 if immediate else READERS, "max_overflow": 1 if immediate else READERS}
    begin = Prepared(text("BEGIN IMMEDIATE" if immediate else "BEGIN"))
    engine = create_engine(
        url,
        pool_timeout=WRITE_TIMEOUT,
        connect_args={"isolation_level": None, "check_same_thread": False},
        hide_parameters=True,  # an error is logged, and among them are hashes and keys
        **pool,
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        assert isinstance(connection, sqlite3.Connection)
        pragmas = ["busy_timeout=5000", "foreign_keys=ON", "temp_store=MEMORY"]
        if immediate:  # auto_vacuum counts only before the first table is made, and takes the write lock
            pragmas += ["auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=FULL"]
        else:
            pragmas += ["synchronous=NORMAL"]  # WAL is a property of the file, which the writer has set
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        try:
            begin.run(connection)
        except BaseException:  # give the connection back (sqlalchemy#5034)
            connection.invalidate()
            raise

    return engine
