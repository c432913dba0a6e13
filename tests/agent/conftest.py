"""Stores for tests: SQLite always, and the same tests on a real PostgreSQL under ``-m real``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.store import Store
from tests.agent import telemetry as _telemetry
from tests.real.postgres import Server, server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """One server for the whole session."""
    with server() as running:
        yield running


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database that tests copy."""
    path = tmp_path_factory.mktemp("template") / "flyball.db"
    store = Store(f"sqlite:///{path}")
    store.upgrade()
    store.close()  # the last connection folds the write-ahead log into the file
    return path


@pytest.fixture(scope="session")
def telemetry(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """The settings of an endpoint with half an hour of telemetry in the database beside them; for all tests, so not to be changed."""
    return _telemetry.write(tmp_path_factory.mktemp("telemetry"), sqlite_template)


@pytest.fixture(scope="session")
def postgresql_template(postgresql: Server) -> str:
    name = postgresql.create()
    store = Store(postgresql.url(name))
    store.upgrade()
    store.close()
    return name


_BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.real)]


@pytest.fixture(params=_BACKENDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    running: Server = request.getfixturevalue("postgresql")
    name = running.create()
    yield running.url(name)
    running.drop(name)


@pytest.fixture(params=_BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A migrated, empty store of this test's own."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "flyball.db")
        made = Store(f"sqlite:///{tmp_path}/flyball.db")
        yield made
        made.close()
        return
    running: Server = request.getfixturevalue("postgresql")
    name = running.create(request.getfixturevalue("postgresql_template"))
    made = Store(running.url(name))
    yield made
    made.close()
    running.drop(name)
