"""Tunes and their trials: one at a time on an endpoint, whoever tries, and each step kept."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from agent.store import Store, audit, tunes
from tests.agent.records import T0


def row(identity: str = "aaaa0001", endpoint: str = "chat", now: float = T0, **more: Any) -> dict[str, Any]:
    return {
        "id": identity, "endpoint": endpoint, "question": {"seed": 0}, "digest": "d", "original": {"replicas": 1},
        "started_by": "cli:ann", "started_at": now, **more,
    }  # fmt: skip


PLANNED = [{"number": i, "name": f"replicas={i + 1}", "shape": {"replicas": i + 1}} for i in (2, 0, 1)]


def test_one_tune_at_a_time_on_an_endpoint(store: Store) -> None:
    with store.write() as db:
        assert tunes.start(db, row(), PLANNED)
        assert not tunes.start(db, row("aaaa0002", now=T0 + 1), PLANNED)
        assert tunes.start(db, row("aaaa0003", endpoint="other"), PLANNED)
        # The refusal left the transaction whole, and wrote nothing.
        assert tunes.trials(db, "aaaa0002") == []
        assert [(e["action"], e["subject"]) for e in audit.entries(db)] == [("tune", "other"), ("tune", "chat")]
    with store.write() as db:
        tunes.end(db, "aaaa0001", state="done", now=T0 + 5, by="cli:bob")
        assert tunes.start(db, row("aaaa0002", now=T0 + 6), PLANNED)


def test_of_many_who_start_at_once_one_does(store: Store) -> None:
    start, began = threading.Barrier(6), list[bool]()

    def begin(i: int) -> None:
        start.wait()
        with store.write() as db:
            began.append(tunes.start(db, row(f"aaaa000{i}"), PLANNED))

    threads = [threading.Thread(target=begin, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(began) == [False] * 5 + [True]
    with store.read() as db:
        (only,) = tunes.latest(db)
        assert tunes.running(db, "chat") == only
        assert len(tunes.trials(db, only["id"])) == len(PLANNED)
        assert audit.verify(db) is None


def test_the_one_under_way(store: Store) -> None:
    with store.write() as db:
        assert tunes.running(db, "chat") is None
        tunes.start(db, row(), PLANNED)
    with store.write() as db:
        found = tunes.running(db, "chat")
        assert found is not None
        assert found | row() == found
        assert (found["state"], found["ended_at"], found["result"]) == ("running", None, None)
        assert tunes.running(db, "other") is None
        tunes.end(db, "aaaa0001", state="abandoned", now=T0 + 9, by="cli:bob")
        assert tunes.running(db, "chat") is None


def test_nothing_was_there_before(store: Store) -> None:
    with store.write() as db:
        tunes.start(db, row(original=None), PLANNED)
    with store.read() as db:
        assert (tunes.running(db, "chat") or {"original": 1})["original"] is None


@pytest.mark.parametrize("state", ["done", "abandoned"])
def test_an_end_is_kept_with_its_result(store: Store, state: str) -> None:
    with store.write() as db:
        tunes.start(db, row(), PLANNED)
        tunes.end(db, "aaaa0001", state=state, now=T0 + 60, by="cli:bob", result={"recommended": None})
    with store.read() as db:
        (found,) = tunes.latest(db, "chat")
        entry = audit.entries(db)[0]
        assert (found["state"], found["ended_at"], found["result"]) == (state, T0 + 60, {"recommended": None})
        assert (entry["action"], entry["actor"], entry["subject"]) == (f"tune_{state}", "cli:bob", "chat")
        assert audit.verify(db) is None
    with pytest.raises(sa.exc.NoResultFound), store.write() as db:
        tunes.end(db, "zzzz", state=state, now=T0, by="cli:bob")


def test_trials_come_in_the_order_in_which_they_were_asked_for(store: Store) -> None:
    with store.write() as db:
        tunes.start(db, row(), PLANNED)
        tunes.start(db, row("bbbb0001", endpoint="other"), PLANNED[:1])
    with store.read() as db:
        found = tunes.trials(db, "aaaa0001")
        assert [(t["number"], t["name"], t["shape"]) for t in found] == [
            (i, f"replicas={i + 1}", {"replicas": i + 1}) for i in range(3)
        ]
        assert {(t["state"], t["why"], t["limit_low"], t["busy_s"]) for t in found} == {("planned", "", None, None)}
        assert [t["body"] for t in found] == [{}] * 3
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        tunes.start(db, row("cccc0001", endpoint="third"), [PLANNED[0], PLANNED[0]])  # a number names one trial
    with store.read() as db:
        assert tunes.running(db, "third") is None


def test_what_changed_of_a_trial_is_kept_and_nothing_else(store: Store) -> None:
    steps = [{"kind": "rate", "rate": 4.2, "figures": {"ttft_s": {"p95": 0.1}}, "invalid": None}]
    with store.write() as db:
        tunes.start(db, row(), PLANNED)
        tunes.start(db, row("bbbb0001", endpoint="other"), PLANNED)
        tunes.keep(db, "aaaa0001", 1, state="running", body={"steps": steps}, busy_s=3.5)
        tunes.keep(db, "aaaa0001", 1, state="done", limit_low=4.2, limit_high=4.8, spent_usd=0.01, ended_at=T0 + 9)
    with store.read() as db:
        first, second, _ = tunes.trials(db, "aaaa0001")
        assert (second["state"], second["body"], second["busy_s"]) == ("done", {"steps": steps}, 3.5)
        assert (second["limit_low"], second["limit_high"], second["ended_at"]) == (4.2, 4.8, T0 + 9)
        assert second["name"] == "replicas=2"
        assert first["state"] == "planned"
        assert {t["state"] for t in tunes.trials(db, "bbbb0001")} == {"planned"}


def test_the_latest_come_first(store: Store) -> None:
    with store.write() as db:
        for i in range(4):
            assert tunes.start(db, row(f"aaaa000{i}", now=T0 + i, endpoint="chat" if i % 2 else "other"), PLANNED)
            tunes.end(db, f"aaaa000{i}", state="done", now=T0 + i, by="cli:ann")
        assert [r["id"][-1] for r in tunes.latest(db)] == ["3", "2", "1", "0"]
        assert [r["id"][-1] for r in tunes.latest(db, "chat")] == ["3", "1"]
        assert [r["id"][-1] for r in tunes.latest(db, limit=1)] == ["3"]
