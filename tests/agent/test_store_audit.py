"""The audit chain: what was altered, removed or slipped in shows; writers at once still make one chain."""

from __future__ import annotations

import threading

import sqlalchemy as sa

from agent.store import Store, audit, schema

_T = schema.audit


def _three(store: Store) -> list[int]:
    with store.write() as db:
        for i in range(3):
            audit.append(db, at=float(i), actor="cli:ann", action="pause", subject=f"s{i}", body={"reason": "ä"})
    with store.read() as db:
        return list(db.execute(sa.select(_T.c.id).order_by(_T.c.id)).scalars())


def test_an_untouched_chain_holds(store: Store) -> None:
    with store.read() as db:
        assert audit.verify(db) is None
    _three(store)
    with store.read() as db:
        assert audit.verify(db) is None
        assert [e["subject"] for e in audit.entries(db)] == ["s2", "s1", "s0"]
        assert [e["subject"] for e in audit.entries(db, "s1")] == ["s1"]


def test_an_altered_row_is_named(store: Store) -> None:
    ids = _three(store)
    for column, value in (("actor", "cli:eve"), ("at", 9.0), ("body", "{}"), ("action", "resume"), ("subject", "x")):
        with store.engine.connect() as connection, connection.begin() as transaction:
            connection.execute(sa.update(_T).where(_T.c.id == ids[1]).values({column: value}))
            assert audit.verify(connection) == ids[1], column
            transaction.rollback()


def test_an_altered_row_with_its_hash_made_anew_breaks_the_next_one(store: Store) -> None:
    ids = _three(store)
    with store.write() as db:
        row = dict(db.execute(sa.select(_T).where(_T.c.id == ids[1])).mappings().one()) | {"actor": "cli:eve"}
        db.execute(sa.update(_T).where(_T.c.id == ids[1]).values(actor="cli:eve", hash=audit._digest(row)))
        assert audit.verify(db) == ids[2]


def test_a_removed_row_is_noticed_at_the_one_after_it(store: Store) -> None:
    ids = _three(store)
    with store.write() as db:
        db.execute(sa.delete(_T).where(_T.c.id == ids[1]))
        assert audit.verify(db) == ids[2]


def test_a_chain_is_followed_on_from_where_it_was_left_and_anew_where_that_was_altered(store: Store) -> None:
    ids, known = _three(store), audit.AuditCheckpoint()
    with store.write() as db:
        assert audit.verify(db, known) is None
        assert known.id == ids[2]
        audit.append(db, at=9.0, actor="a", action="b", subject="c")
        with db.begin_nested() as nested:
            db.execute(sa.update(_T).where(_T.c.id > ids[2]).values(actor="eve"))
            assert audit.verify(db, known) not in (None, *ids)
            nested.rollback()
        assert audit.verify(db, known) is None
        assert known.id > ids[2]
        db.execute(sa.update(_T).where(_T.c.id == known.id).values(hash="0" * 64))
        assert audit.verify(db, known) is not None


def test_the_same_entry_twice_is_two_links(store: Store) -> None:
    with store.write() as db:
        first = audit.append(db, at=1.0, actor="a", action="b", subject="c")
        assert audit.append(db, at=1.0, actor="a", action="b", subject="c") != first


def test_writers_at_once_make_one_chain(store: Store) -> None:
    start = threading.Barrier(4)

    def write(name: str) -> None:
        start.wait()
        for i in range(10):
            with store.write() as db:
                audit.append(db, at=float(i), actor=name, action="count", subject=str(i))

    threads = [threading.Thread(target=write, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as db:
        assert audit.verify(db) is None
        assert len(audit.entries(db)) == 40


def test_what_was_rolled_back_leaves_no_link(store: Store) -> None:
    with store.engine.connect() as connection:
        transaction = connection.begin()
        audit.append(connection, at=1.0, actor="a", action="b", subject="c")
        transaction.rollback()
    _three(store)
    with store.read() as db:
        assert audit.verify(db) is None
        assert len(audit.entries(db)) == 3
