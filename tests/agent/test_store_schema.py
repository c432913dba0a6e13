"""The schema's history leads to just the tables that the code uses, once, whoever starts at the same time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from agent.store import SchemaTooNew, Store, StoreError, schema


def test_upgrades_from_nothing(empty_url: str) -> None:
    store = Store(empty_url)
    assert store.current() is None
    with pytest.raises(StoreError, match=r"schema none, this Flyball needs .*; run `flyball db upgrade`"):
        store.check()
    assert store.upgrade() == store.head() == store.current()
    store.check()
    assert store.upgrade() == store.head()  # again changes nothing
    store.close()


def test_migrations_lead_to_the_tables_of_the_code(store: Store) -> None:
    with store.engine.connect() as connection:
        options = {"compare_type": True}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)
    assert differences == []


def test_partial_unique_index_names_the_active_states(store: Store) -> None:
    """``compare_metadata`` does not look into an index's condition."""
    with store.engine.connect() as connection:
        index = next(i for i in sa.inspect(connection).get_indexes("changes") if i["name"] == "uq_changes_active")
    where = str(index["dialect_options"][f"{store.backend}_where"])
    assert index["unique"]
    assert all(state in where for state in schema.ACTIVE_CHANGE)
    assert "succeeded" not in where


def test_several_starts_at_once_migrate_once(empty_url: str) -> None:
    stores = [Store(empty_url) for _ in range(4)]
    ended: list[str] = []
    start = threading.Barrier(len(stores))

    def upgrade(store: Store) -> None:
        start.wait()
        ended.append(store.upgrade())

    threads = [threading.Thread(target=upgrade, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [stores[0].head()] * 4
    with stores[0].read() as db:
        assert db.execute(sa.text("select version_num from alembic_version")).scalars().all() == [stores[0].head()]
    for store in stores:
        store.close()


def test_a_newer_schema_is_refused_and_left_alone(store: Store) -> None:
    with store.write() as db:
        db.execute(sa.text("update alembic_version set version_num = '9999'"))
    for attempt in (store.check, store.upgrade):
        with pytest.raises(SchemaTooNew, match="at schema 9999, which this Flyball does not know"):
            attempt()
    assert store.current() == "9999"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://x/y", "mysql is not supported; use sqlite"),
        ("nonsense", "database: "),
        ("postgresql+psycopg://u@127.0.0.1:1/db", "cannot be opened"),
    ],
)
def test_a_database_that_cannot_be_used_says_so(url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        Store(url).check()


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "not.db").write_text("this is a letter, not a database, and quite a long one at that " * 20)
    with pytest.raises(StoreError, match=r"not\.db cannot be opened"):
        Store(f"sqlite:///{tmp_path}/not.db").check()


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="database: "):
        Store(f"sqlite:///{tmp_path}/file/flyball.db")


def test_the_password_is_never_shown() -> None:
    store = Store("postgresql+psycopg://u:hunter2@127.0.0.1:1/db")
    with pytest.raises(StoreError) as caught:
        store.check()
    assert "hunter2" not in str(caught.value) + store.where


def test_a_write_that_fails_leaves_nothing(store: Store) -> None:
    def twice() -> None:
        with store.write() as db:
            for _ in range(2):
                db.execute(sa.insert(schema.seen_signatures).values(signature="a", seen_at=1.0))

    with pytest.raises(IntegrityError):
        twice()
    with store.read() as db:
        assert db.execute(sa.select(sa.func.count()).select_from(schema.seen_signatures)).scalar_one() == 0


def test_readers_see_one_moment_while_others_write(store: Store) -> None:
    row = {"signature": "a", "seen_at": 1.0}
    count = sa.select(sa.func.count()).select_from(schema.seen_signatures)
    with store.read() as reader:
        assert reader.execute(count).scalar_one() == 0
        with store.write() as writer:
            writer.execute(sa.insert(schema.seen_signatures).values(**row))
        assert reader.execute(count).scalar_one() == 0
