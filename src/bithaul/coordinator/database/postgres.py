"""What is PostgreSQL's own: its engines, the lock that lets one writer in, the leader, errors in plain words.

The use cases read and then decide, and rely on nobody else writing meanwhile. So every write transaction
takes one advisory lock of the database before it does anything else, and keeps it until it has committed:
it sees all that was decided before, whichever process decided it. It runs READ COMMITTED, since a snapshot
taken while one waits would be old by the time of the turn. Readers take no lock and see one moment.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from bithaul.errors import BithaulError, InvalidConfig, OutOfDisk, Unavailable

DRIVER: Final = "postgresql+psycopg"
WRITERS_KEY: Final = 0x6269_7468_6175_6C01  # "bithaul" and a number; advisory locks are per database
LEADER_KEY: Final = 0x6269_7468_6175_6C02
CONNECT_SECONDS: Final = 10
_PLAIN: Final = {"postgres", "postgresql", DRIVER}  # `postgres:` is what hosting services hand out

READ_ONLY: Final = "25006"
_BUSY: Final = "The database is busy; try again."
_FULL: Final = "The disk of the PostgreSQL server is full; free some space there and try again."
_LOST: Final = "PostgreSQL does not answer; see that it runs and can be reached, then try again."
_NOT_OPENED: Final = "PostgreSQL does not let us in; see that it runs and that database_url is right"
_REASONS: Final[dict[str, tuple[type[BithaulError], str]]] = {  # SQLSTATE, or its class
    "53100": (OutOfDisk, _FULL),
    "53300": (Unavailable, "PostgreSQL has no connection left; raise its max_connections and try again."),
    "53": (Unavailable, "PostgreSQL is short of memory or another resource; give it more and try again."),
    "55P03": (Unavailable, _BUSY),  # lock_timeout
    "57014": (Unavailable, _BUSY),  # statement_timeout, or somebody cancelled it
    "25P03": (Unavailable, _BUSY),  # idle_in_transaction_session_timeout
    "40": (Unavailable, _BUSY),  # a deadlock with somebody else's session
    "57P": (Unavailable, "PostgreSQL is stopping or starting; try again in a moment."),
    "08": (Unavailable, _LOST),
    READ_ONLY: (
        Unavailable,
        "PostgreSQL is read-only, as a standby is; name the primary server in database_url.",
    ),
}
_AT_START: Final = {
    "42501": "The user of database_url may not make tables; make it the owner of the database.",
}


def server_url(url: str) -> URL | None:
    """The URL with psycopg as its driver; None for a database of another kind. Raises `InvalidConfig`.

    No message names the URL: it may hold a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise InvalidConfig(
            "database_url is not a database URL; write it as postgresql://user:password@host:5432/database."
        ) from error
    if parsed.drivername in _PLAIN:
        if "@" in (parsed.host or ""):  # else a piece of the password would be shown as a host's name
            raise InvalidConfig(
                "The user or the password in database_url holds a character with a meaning in a URL; write "
                "it as its code, such as %40 for @."
            )
        return parsed.set(drivername=DRIVER)
    if parsed.get_backend_name() != "sqlite":
        raise InvalidConfig(
            f"database_url names {parsed.drivername}; bithaul works with sqlite: and with postgresql:, "
            "which uses psycopg."
        )
    return None


def engines(url: URL, *, readers: int, timeout: float) -> tuple[Engine, Engine]:
    """For readers and for the writer. Raises `InvalidConfig` without the driver."""
    return (
        _engine(url, reads=True, pool_size=readers, max_overflow=readers, pool_timeout=timeout),
        _engine(url, reads=False, pool_size=2, max_overflow=1, pool_timeout=timeout),
    )


def _engine(url: URL, *, reads: bool, **pool: Any) -> Engine:
    given = {"connect_timeout": CONNECT_SECONDS, "application_name": "bithaul"}
    try:
        engine = create_engine(
            url,
            connect_args={name: value for name, value in given.items() if name not in url.query},
            pool_pre_ping=reads,  # the writer finds out by itself, and tries again
            hide_parameters=True,
            **pool,
        )
        import psycopg
    except ImportError as error:
        raise InvalidConfig(
            "database_url names PostgreSQL, whose driver is not installed; run: "
            "pip install 'bithaul[postgres]'"
        ) from error
    level = psycopg.IsolationLevel.REPEATABLE_READ if reads else psycopg.IsolationLevel.READ_COMMITTED

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = level
        connection.read_only = reads
        connection.adapters.register_dumper(str, _text_dumper())

    return engine


@cache
def _text_dumper() -> Any:
    """For texts. PostgreSQL stores every character but NUL, which a worker may well send."""
    from psycopg.types.string import StrDumperUnknown

    usual: Any = StrDumperUnknown

    def dump(self: Any, text: str) -> Any:
        return usual.dump(self, text.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    return type("TextDumper", (usual,), {"dump": dump})


def take_turn(connection: Connection, *, durable: bool, timeout: float) -> None:
    """The first words of a write transaction: wait until no other one is open, in any process."""
    statements = [
        f"SET LOCAL lock_timeout = {int(timeout * 1000)}",
        *([] if durable else ["SET LOCAL synchronous_commit = off"]),
        f"SELECT pg_advisory_xact_lock({WRITERS_KEY})",
    ]
    driver: Any = connection.connection.driver_connection
    errors = connection.dialect.loaded_dbapi.Error
    sql = "; ".join(statements)
    try:
        driver.execute(sql, prepare=False)  # one message; several statements cannot be prepared
    except errors as error:
        raise DBAPIError.instance(sql, None, error, errors, dialect=connection.dialect) from error


class Leadership:
    """A lock that one process has as long as its connection lives, whatever folder it works in.

    It keeps two coordinators from merging and deleting for one database. It is no fence: what a former
    leader still writes is refused because the version it began from is not the newest any more.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._guard = threading.Lock()
        self._held: Connection | None = None

    def hold(self) -> bool:
        """Whether it is ours, taken now if it is free."""
        with self._guard:
            if self._held is not None:
                try:
                    self._held.exec_driver_sql("SELECT 1")
                except DBAPIError:  # the server has hung up, and the lock went with it
                    self._drop()
            if self._held is None:
                self._held = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                try:
                    query = f"SELECT pg_try_advisory_lock({LEADER_KEY})"
                    taken = bool(self._held.exec_driver_sql(query).scalar_one())
                except BaseException:
                    self._drop()
                    raise
                if not taken:
                    self._drop()
            return self._held is not None

    def release(self) -> None:
        with self._guard:
            if self._held is not None:
                self._drop()

    def _drop(self) -> None:
        """Not given back to the pool: only the end of the connection frees the lock for certain."""
        held, self._held = self._held, None
        if held is not None:
            held.invalidate()
            held.close()


def is_lost(connection: Connection) -> bool:
    """Whether its server has hung up."""
    return connection.invalidated or bool(getattr(connection.connection.driver_connection, "closed", True))


def plainly(error: DBAPIError, *, starting: bool = False, reads: bool = False) -> BithaulError | None:
    """What a person is told; None for a defect of ours, such as a write by one who only `reads`."""
    state = getattr(error.orig, "sqlstate", None)
    if reads and state == READ_ONLY:
        return None
    if state is None:  # no answer of a server: refused, cut off, or never reached
        if not isinstance(error, OperationalError):
            return None
        said = " ".join(str(error.orig).split())
        return Unavailable(f"{_NOT_OPENED} ({said})." if starting else _LOST)
    for length in (5, 3, 2):
        if starting and state[:length] in _AT_START:
            return InvalidConfig(_AT_START[state[:length]])
        if state[:length] in _REASONS:
            kind, message = _REASONS[state[:length]]
            return kind(message)
    return None
