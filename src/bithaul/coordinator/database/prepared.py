"""Statements that are compiled once and then run on the driver's own connection.

Polls, claims and reports are made of small statements, and for those SQLAlchemy spends ten to twenty times
longer on preparing and wrapping than the database on running (docs/lab/0012-a-fast-rehearsal.md). A
`Prepared` is written with SQLAlchemy like any other statement and gives the same values and errors; it takes
part in the transaction of the connection it is given. It is for fixed statements: no list of values of
changing length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Executable, Table, bindparam, insert, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

Values = tuple[Any, ...]
Process = Callable[[Any], Any]
MOST_VALUES = 500
Outputs = tuple[tuple[int, Process], ...]
_KEY, _NEW = "key_", "new_"  # SQLAlchemy keeps a column's own name for itself in SET


@dataclass(frozen=True)
class _Compiled:
    """For one dialect. `inputs` convert what the driver does not know, such as JSON."""

    sql: str
    defaults: dict[str, Any]
    order: tuple[str, ...] | None  # None: the driver takes names
    inputs: tuple[tuple[str, Process], ...]


class Prepared:
    """`first`, `all` and `run` take the values of the statement's `bindparam`s by name."""

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}
        self._outputs: dict[str, Outputs] = {}

    def first(self, connection: Connection, **values: Any) -> Values | None:
        """The first row, or None."""
        rows = self.all(connection, **values)
        return rows[0] if rows else None

    def all(self, connection: Connection, **values: Any) -> list[Values]:
        compiled = self._for(connection.dialect)
        cursor = self._execute(connection, compiled, values)
        rows: list[Values] = cursor.fetchall()
        outputs = self._outputs.get(connection.dialect.name)
        if outputs is None:
            outputs = _outputs(self._statement, connection.dialect, cursor.description)
            self._outputs[connection.dialect.name] = outputs
        if not outputs:
            return rows
        converted = []
        for row in rows:
            changed = list(row)
            for place, process in outputs:
                changed[place] = process(changed[place])
            converted.append(tuple(changed))
        return converted

    def run(self, connection: Connection, **values: Any) -> int:
        """Run a statement that returns no rows; how many it changed."""
        return int(self._execute(connection, self._for(connection.dialect), values).rowcount)

    def _execute(self, connection: Connection, compiled: _Compiled, values: dict[str, Any]) -> Any:
        parameters = {**compiled.defaults, **values}
        for name, process in compiled.inputs:
            parameters[name] = process(parameters[name])
        given: Any = parameters
        if compiled.order is not None:
            given = [parameters[name] for name in compiled.order]
        driver: Any = connection.connection.driver_connection
        errors = connection.dialect.loaded_dbapi.Error
        try:
            return driver.execute(compiled.sql, given)
        except errors as error:
            raise DBAPIError.instance(
                compiled.sql,
                given,
                error,
                errors,
                hide_parameters=connection.engine.hide_parameters,
                dialect=connection.dialect,
            ) from error

    def _for(self, dialect: Dialect) -> _Compiled:
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = _compile(self._statement, dialect)
        return found


def _compile(statement: Any, dialect: Dialect) -> _Compiled:
    compiled = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    assert isinstance(compiled, SQLCompiler)
    inputs = [
        (name, bind.type.dialect_impl(dialect).bind_processor(dialect))
        for bind, name in compiled.bind_names.items()
    ]
    return _Compiled(
        sql=str(compiled),
        defaults=dict(compiled.params),
        order=tuple(compiled.positiontup) if compiled.positiontup is not None else None,
        inputs=tuple((name, process) for name, process in inputs if process is not None),
    )


def _outputs(statement: Any, dialect: Dialect, description: Sequence[Any]) -> Outputs:
    """What converts a row's values; it depends on how the driver delivers them, as `description` says."""
    columns = getattr(statement, "exported_columns", ())
    found = [
        (i, column.type.dialect_impl(dialect).result_processor(dialect, about[1]))
        for i, (column, about) in enumerate(zip(columns, description, strict=True))
    ]
    return tuple((i, process) for i, process in found if process is not None)


def update_row(connection: Connection, table: Table, key: dict[str, Any], values: dict[str, Any]) -> int:
    """SET `values` in the rows that have `key`; how many there were."""
    if not values:
        return 0
    given = {_KEY + name: value for name, value in key.items()}
    given.update({_NEW + name: value for name, value in values.items()})
    return _update(table, tuple(key), tuple(values)).run(connection, **given)


def insert_row(connection: Connection, table: Table, values: dict[str, Any]) -> None:
    """One row with exactly these columns."""
    _insert(table, tuple(values)).run(connection, **values)


@lru_cache(maxsize=256)
def _update(table: Table, key: tuple[str, ...], names: tuple[str, ...]) -> Prepared:
    where = [table.c[name] == bindparam(_KEY + name) for name in key]
    return Prepared(update(table).where(*where).values({name: bindparam(_NEW + name) for name in names}))


@lru_cache(maxsize=64)
def _insert(table: Table, names: tuple[str, ...]) -> Prepared:
    return Prepared(insert(table).values({name: bindparam(name) for name in names}))


def parts(values: Sequence[int]) -> Iterator[Sequence[int]]:
    """For lists of values in a statement: as many at a time as every database takes."""
    return (values[i : i + MOST_VALUES] for i in range(0, len(values), MOST_VALUES))
