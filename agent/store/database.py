"""Opens the database, brings its schema up under a lock, and hands out transactions."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError

_WAL_TRIES = 200
_MIGRATION_LOCK = 0x666C7962616C6C  # "flyball": the key of PostgreSQL's advisory lock


class StoreError(Exception):
    """The database cannot be used; the text says why and what to do."""


class SchemaTooNew(StoreError):
    """A newer Flyball made this database."""


class Store:
    """One database. Safe to share between threads."""

    def __init__(self, url: str, *, now: Callable[[], float] = time.time) -> None:
        """``now``: the clock of SQLite's machine, which is this one. PostgreSQL has its own."""
        try:
            parsed = make_url(url)
            self.backend = parsed.get_backend_name()
            if self.backend not in ("sqlite", "postgresql"):
                raise StoreError(
                    f"database: {self.backend} is not supported; use sqlite:///PATH or postgresql+psycopg://..."
                )
            if self.backend == "sqlite" and parsed.database and parsed.database != ":memory:":
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine = _sqlite(parsed, now) if self.backend == "sqlite" else _postgresql(parsed)
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"database: {error}") from error
        except ModuleNotFoundError as error:
            raise StoreError(f"database: {error.name} is missing; pip install 'flyball[postgres]'") from error
        # SQLite's transactions see one moment anyway; PostgreSQL's do at this level
        repeatable = {"isolation_level": "REPEATABLE READ"} if self.backend == "postgresql" else {}
        self._reading = self.engine.execution_options(**repeatable)
        self.where = parsed.render_as_string(hide_password=True)
        file = parsed.database if self.backend == "sqlite" else None
        self._file = Path(file) if file and file != ":memory:" else None
        self._inode: int | None = None

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A read transaction: one consistent view."""
        self._same_file()
        with self._reading.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A write transaction: all of it, or none. On SQLite it waits its turn from the start, so it never has to be redone."""
        self._same_file()
        with self.engine.connect().execution_options(flyball_write=True) as connection, connection.begin():
            yield connection

    def _same_file(self) -> None:
        """Connections to a file that was deleted would go on into nothing. One that was put in its place is taken up.

        Raises OperationalError, as for any database that is away, while it is gone.
        """
        if self._file is None:
            return
        try:
            inode = self._file.stat().st_ino
        except FileNotFoundError as error:
            if self._inode is None:
                return  # the first connection makes it
            self.engine.dispose()
            raise OperationalError(
                "open", None, OSError(f"{self._file} was deleted; restore it, or restart")
            ) from error
        if self._inode not in (None, inode):
            self.engine.dispose()
        self._inode = inode

    def current(self) -> str | None:
        """The schema's revision, None for an empty database. Raises ``StoreError`` where it cannot be opened."""
        try:
            with self.engine.connect() as connection:
                return MigrationContext.configure(connection).get_current_revision()
        except SQLAlchemyError as error:
            raise StoreError(f"database {self.where} cannot be opened: {_first_line(error)}") from error

    def head(self) -> str:
        """The revision that this Flyball works with."""
        return str(_scripts().get_current_head())

    def check(self) -> None:
        """Raises ``StoreError`` unless the schema is just right, ``SchemaTooNew`` where it is ahead."""
        current = self.current()
        if current == self.head():
            return
        self._refuse_newer(current)
        raise StoreError(
            f"database {self.where} is at schema {current or 'none'}, this Flyball needs {self.head()}; run `flyball db upgrade`"
        )

    def upgrade(self) -> str:
        """Bring the schema to ``head`` under a lock, so that two starts at once do it once. Returns the revision."""
        try:
            with self._migration_lock() as connection:
                current = MigrationContext.configure(connection).get_current_revision()
                self._refuse_newer(current)
                if current != self.head():
                    config = _alembic()
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
        except SQLAlchemyError as error:
            raise StoreError(f"database {self.where} cannot be upgraded: {_first_line(error)}") from error
        return self.head()

    def _refuse_newer(self, current: str | None) -> None:
        known = {script.revision for script in _scripts().walk_revisions()}
        if current is not None and current not in known:
            raise SchemaTooNew(
                f"database {self.where} is at schema {current}, which this Flyball does not know: a newer one made it. "
                "Use that one, or restore a backup"
            )

    @contextmanager
    def _migration_lock(self) -> Iterator[sa.Connection]:
        if self.backend == "sqlite":
            with self.write() as connection:  # BEGIN IMMEDIATE: one migrator at a time
                yield connection
            return
        with self.engine.connect() as connection, connection.begin():
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            yield connection


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    return config


@cache
def _scripts() -> ScriptDirectory:
    """The schema's history, read once."""
    return ScriptDirectory.from_config(_alembic())


def _sqlite(url: sa.URL, now: Callable[[], float]) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _record: Any) -> None:
        dbapi.create_function("flyball_now", 0, now)
        dbapi.isolation_level = None  # SQLAlchemy, not the driver, says when a transaction begins
        cursor = dbapi.cursor()
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("flyball_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _use_wal(cursor: Any) -> None:
    """Switch to the write-ahead log. SQLite does not wait for its turn here as it does elsewhere: two first starts at once collide."""
    for attempt in range(_WAL_TRIES):
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if attempt == _WAL_TRIES - 1:
                raise
            time.sleep(0.05)
        else:
            return


def _postgresql(url: sa.URL) -> sa.Engine:
    return sa.create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=5, connect_args={"connect_timeout": 10})


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
