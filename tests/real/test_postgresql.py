"""PostgreSQL alone: separate processes that migrate at once, and what the store leaves on the server."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from agent.governor import LEASE_S
from agent.store import Store, schema, windows
from tests.agent.records import T0, fill, window
from tests.agent.takeover import stall_both, stop_the_leader, two_daemons
from tests.collectors.pages import v0_9
from tests.collectors.servers import answering, serve
from tests.real.postgres import Server, server

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server() as one:
        yield one


@pytest.fixture
def url(running: Server) -> Iterator[str]:
    name = running.create()
    yield running.url(name)
    running.drop(name)


def test_separate_processes_migrate_once(url: str) -> None:
    code = "import sys; from agent.store import Store; s = Store(sys.argv[1]); print(s.upgrade()); s.close()"
    started = [
        subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=60) for process in started]
    store = Store(url)
    assert [process.returncode for process in started] == [0, 0, 0], answers
    assert [out.strip() for out, _ in answers] == [store.head()] * 3
    store.check()
    store.close()


def test_a_migration_waits_for_the_lock(url: str) -> None:
    """Whoever holds the lock holds the others up; they go on when it is free."""
    code = "import sys; from agent.store import Store; s = Store(sys.argv[1]); s.upgrade(); s.close()"
    holder = Store(url)
    with holder._migration_lock() as db:
        process = subprocess.Popen([sys.executable, "-c", code, url])
        waiting = sa.text("select count(*) from pg_stat_activity where wait_event = 'advisory'")
        for _ in range(200):
            if db.execute(waiting).scalar_one() == 1:
                break
            db.execute(sa.text("select pg_sleep(0.1), pg_stat_clear_snapshot()"))
        assert db.execute(waiting).scalar_one() == 1
        assert process.poll() is None
        assert db.execute(sa.text("select to_regclass('windows')")).scalar_one() is None
    assert process.wait(timeout=60) == 0
    holder.check()
    holder.close()


def test_a_failed_migration_leaves_nothing(url: str) -> None:
    store = Store(url)
    with store.write() as db:
        db.execute(sa.text("create table leases (id int)"))  # somebody else's table of this name
    with pytest.raises(Exception, match=r'relation "leases" already exists'):
        store.upgrade()
    with store.read() as db:
        assert sa.inspect(db).get_table_names() == ["leases"]
    store.close()


def test_a_persons_own_sql_answers(url: str) -> None:
    """Plain columns with plain psycopg, as a dashboard would read them."""
    store = Store(url)
    store.upgrade()
    fill(store)
    store.close()
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as connection:
        rows = connection.execute(
            "select count(*), sum(requests), sum(cost_usd), count(*) filter (where coverage = 0) from windows"
        ).fetchone()
        joined = connection.execute(
            "select c.state, l.observed from changes c join ledger l on l.change_id = c.id order by c.id"
        ).fetchall()
    assert rows == (60, 50 * 120.0, pytest.approx(2.0), 10)
    assert joined == [("succeeded", 0.44), ("rolled_back", 0.8)]


def test_a_lost_connection_is_replaced(url: str) -> None:
    """The server ends all connections (a restart, a failover): the next transaction works."""
    store = Store(url)
    store.upgrade()
    with store.write() as db:
        windows.save(db, [window(T0)])
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as other:
        other.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
    with store.write() as db:
        assert windows.save(db, [window(T0 + 60)]) == 1
        assert db.execute(sa.select(sa.func.count()).select_from(schema.windows)).scalar_one() == 2
    store.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_another_daemon_leads_within_15_seconds(how: signal.Signals, url: str, tmp_path: Path) -> None:
    with serve(answering(v0_9())) as vllm:
        endpoints = [{"name": "chat", "url": vllm.url, "objective": {"ttft_p95_s": 1.0}, "shape": {"replicas": 1}}]
        with two_daemons(tmp_path, url, endpoints) as (leader, standby):
            stop_the_leader(leader, standby, how)


@pytest.mark.timeout(300)
def test_a_machine_that_stands_still_changes_no_leader(url: str, tmp_path: Path) -> None:
    with serve(answering(v0_9())) as vllm:
        endpoints = [{"name": "chat", "url": vllm.url, "objective": {"ttft_p95_s": 1.0}, "shape": {"replicas": 1}}]
        with two_daemons(tmp_path, url, endpoints) as (leader, standby):
            stall_both(leader, standby, LEASE_S + 2)
