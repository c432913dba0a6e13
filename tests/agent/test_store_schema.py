"""The schema's history leads to just the tables that the code uses, once, whoever starts at the same time."""

from __future__ import annotations

import json
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError, OperationalError

from actuators.shape import Autoscaling, Plan, Purchase, Shape
from agent.store import SchemaTooNew, Store, StoreError, changes, control, fleet, recommendations, schema


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


def _to(store: Store, revision: str) -> None:
    with store.write() as connection:
        config = Config()
        config.set_main_option("script_location", str(files("migrations")))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def _insert(db: sa.Connection, name: str, **values: Any) -> None:
    """As the Flyball of that revision would have: with JSON as text, and without the columns that came later."""
    marks = ", ".join(f":{key}" for key in values)
    plain = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in values.items()}
    db.execute(sa.text(f"INSERT INTO {name} ({', '.join(values)}) VALUES ({marks})"), plain)


OLD_SHAPE = {"replicas": 2, "engine": {"max_num_seqs": 8}, "billing": "hourly"}
OLD_PLAN = {
    "endpoint": "chat", "system": "emulated", "before": OLD_SHAPE, "after": {**OLD_SHAPE, "replicas": 3}, "version": "7",
    "operations": [{"name": "put_shape", "args": {"shape": {**OLD_SHAPE, "replicas": 3}}, "deadline_s": 60.0, "summary": "start it"}],
    "restarts": False, "downtime_s": 0.0, "way_back": "the same step back",
}  # fmt: skip


def test_yesterdays_database_is_taken_over_with_its_data(empty_url: str) -> None:
    """What runs goes on, shapes are converted, and what was proposed on a plan of the old form is proposed anew."""
    store = Store(empty_url)
    _to(store, "0002")
    scaled = {"engine": {}, "billing": "hourly", "min_replicas": 1, "max_replicas": 6}
    bought = {"engine": {}, "billing": "ptu", "capacity": 100}
    with store.write() as db:
        for name, shape in (("chat", OLD_SHAPE), ("scaled", scaled), ("bought", bought)):
            _insert(db, "endpoints", endpoint=name, shape=shape, shape_version="7", ready=True, detail="", seen_at=1.0)
        for identity, state in (("r1", "proposed"), ("r2", "approved"), ("r3", "applying")):
            _insert(
                db, "recommendations", id=identity, endpoint="chat", fingerprint=identity, revision=1, state=state, state_reason="",
                state_by="flyball", requested_by="flyball", plan_hash="sha256:old", plan=OLD_PLAN, body={"current": {"shape": OLD_SHAPE}},
                created_at=1.0, refreshed_at=1.0, expires_at=9e9,
            )  # fmt: skip
        _insert(
            db, "changes", id="c1", recommendation_id="r3", endpoint="chat", state="applying", state_reason="", approved_by="ada",
            plan_hash="sha256:old", plan=OLD_PLAN, epoch=4, created_at=5.0, rollback_requested=False,
        )  # fmt: skip
        _insert(
            db, "journal", change_id="c1", direction="apply", step=0, token="c1:apply:0", operation=OLD_PLAN["operations"][0],
            state="started", detail="", epoch=4, intent_at=6.0, done_at=7.0,
        )  # fmt: skip
    store.upgrade()
    with store.read() as db:
        found = {
            row["endpoint"]: Shape.from_dict(row["shape"])
            for row in (fleet.get(db, name) for name in ("chat", "scaled", "bought"))
            if row is not None
        }
        (change,), (step,) = changes.active(db), changes.journal(db, "c1")
        states = {row["id"]: row["state"] for row in recommendations.listed(db)}
    assert found == {
        "chat": Shape(replicas=2, engine={"max_num_seqs": 8}),
        "scaled": Shape(autoscaling=Autoscaling(1, 6)),
        "bought": Shape(purchase=Purchase(100, "ptu")),
    }
    plan = Plan.from_dict(change["plan"])
    assert (plan.after.replicas, change["purpose"], change["since"]) == (3, "change", 5.0)
    assert plan.operations[0].args == {"shape": {"replicas": 3, "engine": {"max_num_seqs": 8}}}
    assert (step["started_at"], step["receipt"]) == (7.0, {"handle": {"token": "c1:apply:0"}, "leaves": None})
    assert states == {"r1": "superseded", "r2": "superseded", "r3": "applying"}
    store.close()


def test_a_database_file_that_is_deleted_is_away_and_not_written_into_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    store = Store(f"sqlite:///{path}")
    store.upgrade()
    with store.write() as db:
        control.put(db, "key", 1, 1.0, "me")
    store.engine.dispose()  # folds the write-ahead log into the file
    kept = path.read_bytes()
    path.unlink()
    for access in (store.read, store.write):
        with pytest.raises(OperationalError, match="was deleted; restore it, or restart"), access():
            pass
    assert not path.exists()
    path.write_bytes(kept)
    with store.read() as db:
        assert (control.get(db, "key") or {})["value"] == 1
    store.close()
