"""The few statements that differ between SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement


class DatabaseTime(ColumnElement[float]):
    """Unix seconds by the database's clock, at the moment of the statement: the one clock that all who share it have in common."""

    type = sa.Double()
    inherit_cache = True


@compiles(DatabaseTime, "sqlite")
def _sqlite_now(element: DatabaseTime, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "flyball_now()"  # of this machine, where the database is too; see database.py


@compiles(DatabaseTime, "postgresql")
def _postgresql_now(element: DatabaseTime, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "extract(epoch FROM clock_timestamp())::double precision"


def upsert(
    db: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    key: Sequence[str],
    update: Sequence[str] = (),
    greater: str | None = None,
) -> int:
    """Insert rows; where ``key`` is there already, set the ``update`` columns, or leave the row alone when there are none.

    ``greater``: a column; the row is left alone unless the new value of it is greater than its own.

    Returns how many rows were written.
    """
    if not rows:
        return 0
    statement = _upsert(db.dialect.name, table, tuple(key), tuple(update), greater)
    return db.execute(statement, [dict(row) for row in rows]).rowcount


@cache
def _upsert(dialect: str, table: sa.Table, key: tuple[str, ...], update: tuple[str, ...], greater: str | None) -> Any:
    """Made once: ``excluded`` copies the whole table."""
    statement = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table)
    if update:
        better = None if greater is None else statement.excluded[greater] > table.c[greater]
        statement = statement.on_conflict_do_update(
            index_elements=key, set_={name: statement.excluded[name] for name in update}, where=better
        )
    else:
        statement = statement.on_conflict_do_nothing(index_elements=key)
    # without the option SQLAlchemy does not keep the driver's count for an INSERT, and PostgreSQL's would read as -1
    return statement.execution_options(preserve_rowcount=True)
