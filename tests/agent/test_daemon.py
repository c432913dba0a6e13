"""`flyball run` as a real process: signals, health, schedule, a second daemon, systemd, traces and logs."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent import views
from agent.clock import VirtualClock
from agent.governor import LEASE_S, Governor, last_due
from agent.settings import Settings
from agent.store import Store, outbox, windows
from collectors.http import Http
from collectors.window import Window
from tests.actuators.support import free_port
from tests.agent.daemons import Daemon, flyball, running, write_settings
from tests.agent.takeover import stall_both, stop_the_leader, two_daemons
from tests.collectors.pages import v0_9
from tests.collectors.servers import Handler, Request, Served, answering, serve

pytestmark = pytest.mark.timeout(300)

#: What the issue promises for SIGTERM.
WITHIN_S = 10.0


@pytest.fixture
def vllm() -> Iterator[Served]:
    """A server with a page that never moves."""
    with serve(answering(v0_9())) as served:
        yield served


def endpoint(name: str, url: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "url": url, "objective": {"ttft_p95_s": 1.0}, "shape": {"replicas": 1}, **more}


def hanging() -> Handler:
    """Takes the request and never answers."""

    async def handler(_request: Request, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    return handler


def change_settings(config: Path, **more: Any) -> None:
    data = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(data | more, sort_keys=False))


# -- the end -----------------------------------------------------------------------------------------------------------


def test_sigterm_ends_it_cleanly(tmp_path: Path, vllm: Served) -> None:
    with running(write_settings(tmp_path, [endpoint("chat", vllm.url)])) as daemon:
        daemon.ready()
        daemon.until(lambda: _newest(daemon, "chat"), "a window is there")
        assert daemon.stop(WITHIN_S) == 0
        assert daemon.lines()[-1]["event"] == "stopped"
        assert daemon.lines("cut_off") == []
        with daemon.store() as store, store.read() as db:
            assert windows.load(db, "chat", "vllm", 0, time.time(), 1.0) != []
            assert views.status(store, daemon.settings, 0.0)["leader"] is None, "the lease is given up"


def test_sigterm_ends_it_while_an_endpoint_hangs(tmp_path: Path) -> None:
    with serve(hanging()) as stuck:
        config = write_settings(
            tmp_path,
            [endpoint("stuck", stuck.url)],
            collect={"interval_s": 0.5, "window_s": 1, "timeout_s": 60},
        )
        with running(config) as daemon:
            daemon.until(lambda: stuck.requests, "the endpoint is being read")
            daemon.ready()
            assert daemon.stop(WITHIN_S) == 0


def test_sigterm_ends_it_while_somebody_holds_the_database(tmp_path: Path, vllm: Served) -> None:
    with running(write_settings(tmp_path, [endpoint("chat", vllm.url)])) as daemon:
        daemon.ready()
        other = sqlite3.connect(tmp_path / "flyball.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            time.sleep(1.5)  # long enough for a cycle to wait for its turn
            assert daemon.stop(WITHIN_S) == 1, "not all of it could be ended cleanly"
        finally:
            other.close()
        assert daemon.lines("cut_off") != []


def test_the_closing_of_its_terminal_ends_it(tmp_path: Path, vllm: Served) -> None:
    ours, its = os.openpty()
    try:
        config = write_settings(tmp_path, [endpoint("chat", vllm.url)])
        with running(config, stdin=its) as daemon:
            os.close(its)
            daemon.ready()
            daemon.signal(signal.SIGHUP)
            daemon.until(lambda: daemon.lines("reloaded"), "the settings are reloaded while the terminal is there")
            daemon.ready()
            os.close(ours)
            ours = -1
            daemon.signal(signal.SIGHUP)
            assert daemon.process.wait(WITHIN_S) == 0
            assert daemon.lines()[-1]["event"] == "stopped"
    finally:
        if ours >= 0:
            os.close(ours)


def test_a_port_in_use_is_said_before_it_leads(tmp_path: Path, vllm: Served) -> None:
    config = write_settings(tmp_path, [endpoint("chat", vllm.url)])
    with socket.create_server(("127.0.0.1", yaml.safe_load(config.read_text())["web"]["port"])) as taken:
        done = flyball("run", "-c", str(config))
        port = taken.getsockname()[1]
    assert done.returncode == 1
    assert (
        f"127.0.0.1:{port} cannot be listened on: {os.strerror(errno.EADDRINUSE)}; set web.port to a free one"
        in done.stderr
    )
    assert done.stdout == ""
    assert not (tmp_path / "flyball.db").exists(), "it has not led"


# -- new settings ------------------------------------------------------------------------------------------------------


def test_sighup_takes_new_settings_in(tmp_path: Path, vllm: Served) -> None:
    config = write_settings(tmp_path, [endpoint("chat", vllm.url)])
    with running(config) as daemon:
        daemon.ready()
        change_settings(config, endpoints=[endpoint("chat", vllm.url), endpoint("second", vllm.url)])
        daemon.signal(signal.SIGHUP)
        daemon.until(lambda: len(daemon.lines("started")) == 2, "it runs under the new settings")
        daemon.ready()
        daemon.until(lambda: _newest(daemon, "second"), "the new endpoint has been read")
        assert daemon.stop(WITHIN_S) == 0


def test_the_first_analysis_waits_for_windows_and_not_for_its_turn(tmp_path: Path, vllm: Served) -> None:
    """After a start and after a reload, which also brings a newcomer; it goes on until there is enough to judge by."""
    config = write_settings(tmp_path, [endpoint("chat", vllm.url)], decide={"interval_s": 3600, "act_interval_s": 0.5})
    with running(config) as daemon:
        daemon.until(lambda: len(_of("chat", daemon.lines("analyzed"))) >= 3, "it is analyzed with each window")
        change_settings(config, endpoints=[endpoint("chat", vllm.url), endpoint("new", vllm.url)])
        daemon.signal(signal.SIGHUP)
        daemon.until(lambda: daemon.lines("reloaded"), "the settings are reloaded")
        before = len(_of("chat", daemon.lines("analyzed")))
        daemon.until(lambda: _of("new", daemon.lines("analyzed")), "the newcomer is analyzed")
        daemon.until(lambda: len(_of("chat", daemon.lines("analyzed"))) > before, "and the other one again")


def test_sighup_is_heeded_while_somebody_holds_the_database(tmp_path: Path, vllm: Served) -> None:
    """New settings are taken or refused at once; until the old ones are put away the process lives, as systemd can hear."""
    config = write_settings(tmp_path, [endpoint("chat", vllm.url)])
    good = config.read_text()
    with _systemd() as (listening, env), running(config, env=env) as daemon:
        daemon.ready()
        with _write_lock(tmp_path):
            config.write_text("endpoints: [")
            daemon.signal(signal.SIGHUP)
            daemon.until(lambda: daemon.lines("reload_refused"), "broken settings are refused")
            assert daemon.get("/healthz")[0] in (200, 503), "its pages answer"
            config.write_text(good)
            change_settings(config, endpoints=[endpoint("chat", vllm.url), endpoint("second", vllm.url)])
            daemon.signal(signal.SIGHUP)
            daemon.until(lambda: daemon.lines("reloaded"), "the settings are reloaded")
            _drain(listening)
            for _ in range(15):
                _hears(listening, "WATCHDOG=1")
            assert len(daemon.lines("started")) == 1, "it had begun again already, so nothing was waited for"
        daemon.until(lambda: len(daemon.lines("started")) == 2, "it begins with the new settings")
        daemon.ready()
        daemon.until(lambda: _newest(daemon, "second"), "the new endpoint has been read")
        assert daemon.stop(WITHIN_S) == 0


BROKEN = {
    "not YAML": "endpoints: [",
    "an unknown key": "endpointz: []",
    "an unknown system": "endpoints: [{name: chat, url: 'http://127.0.0.1:1', actuator: {system: nonsense}}]",
    "no such file of certificates": "tls_ca_file: /nowhere/ca.pem",
    "another database": "database: sqlite:///other.db",
}


def test_sighup_refuses_broken_settings_and_goes_on(tmp_path: Path, vllm: Served) -> None:
    config = write_settings(tmp_path, [endpoint("chat", vllm.url)])
    good = config.read_text()
    with running(config) as daemon, socket.create_server(("127.0.0.1", 0)) as taken:
        daemon.ready()
        busy = {"a port that is taken": f"web: {{port: {taken.getsockname()[1]}}}"}
        for number, (what, text) in enumerate((BROKEN | busy).items(), 1):
            config.write_text(
                text if what == "not YAML" else yaml.safe_dump(yaml.safe_load(good) | yaml.safe_load(text))
            )
            daemon.signal(signal.SIGHUP)
            daemon.until(lambda n=number: len(daemon.lines("reload_refused")) >= n, f"{what} is refused")  # type: ignore[misc]
            assert daemon.get("/healthz")[0] == 200, what
        assert daemon.lines("reloaded") == []
        at = time.time()
        daemon.until(lambda: (_newest(daemon, "chat") or 0) > at, "the old settings go on")
        assert daemon.stop(WITHIN_S) == 0


def _newest(daemon: Daemon, name: str) -> float | None:
    found = [e for e in daemon.json("/index.json")["endpoints"] if e["name"] == name]
    newest: float | None = found[0]["window"]["newest_at"] if found else None
    return newest


# -- health ------------------------------------------------------------------------------------------------------------


def test_health_readiness_and_metrics(tmp_path: Path, vllm: Served) -> None:
    with running(write_settings(tmp_path, [endpoint("chat", vllm.url)])) as daemon:
        daemon.ready()
        assert daemon.json("/healthz") == {"ok": True, "loops": {}}
        assert daemon.json("/readyz") == {"ready": True, "leading": True}

        def counted() -> str | None:
            text = daemon.get("/metrics")[1]
            return text if re.search(r'flyball_windows_total\{endpoint="chat",source="vllm"\} [1-9]', text) else None

        text = daemon.until(counted, "windows are counted")
        for loop in ("lead", "collect", "decide", "act", "notify"):
            assert re.search(rf'flyball_cycle_seconds_count\{{loop="{loop}"\}} [1-9]', text), loop
        assert re.search(r'flyball_reads_total\{endpoint="chat",source="vllm"\} [1-9]', text)
        assert "flyball_leader 1.0" in text


def test_a_loop_that_never_ends_a_cycle_is_unhealthy(tmp_path: Path) -> None:
    clock = VirtualClock()
    store = Store(f"sqlite:///{tmp_path}/flyball.db")
    store.upgrade()

    async def story() -> tuple[dict[str, str], dict[str, str]]:
        http = Http()
        governor = Governor(Settings(state_dir=tmp_path), store, clock, holder="me", http=http)
        at_first = governor.alive()
        clock.set(clock.now() + 3600)
        later = governor.alive()
        await http.aclose()
        return at_first, later

    at_first, later = asyncio.run(story())
    store.close()
    assert at_first == {}
    assert later["collect"] == "has not ended a cycle lately"


# -- the weekly report -------------------------------------------------------------------------------------------------


def test_a_report_that_was_missed_is_caught_up_once(tmp_path: Path, vllm: Served) -> None:
    config = write_settings(tmp_path, [endpoint("chat", vllm.url)])
    due = last_due("mon 08:00", "UTC", time.time())
    store = Store(f"sqlite:///{tmp_path}/flyball.db")
    store.upgrade()
    with store.write() as db:
        hours = [due - 3600.0 * n for n in range(1, 30)]
        windows.save(db, [Window("chat", "vllm", h, 3600.0, 1.0, counts={"requests": 60.0}) for h in hours])
    store.close()
    with running(config) as daemon:
        report = daemon.until(lambda: _reports(daemon), "the report is there")[0]
        assert (report["period_end"], report["period_start"]) == (due, due - 7 * 86_400)
        assert report["summary"]["endpoints"][0]["requests"] == 29 * 60
        assert Path(report["path"]).read_text().startswith("<!doctype html>")
        assert daemon.stop(WITHIN_S) == 0
    with running(config, "again") as daemon:
        daemon.ready()
        daemon.until(lambda: daemon.lines("analyzed"), "it runs")
        assert daemon.lines("report_made") == []
        assert len(_reports(daemon)) == 1


def _reports(daemon: Daemon) -> list[dict[str, Any]]:
    with daemon.store() as store:
        if store.current() != store.head():
            return []
        with store.read() as db:
            return outbox.reports(db)


# -- two of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_second_daemon_stands_by_and_leads_within_15_seconds(
    how: signal.Signals, tmp_path: Path, vllm: Served
) -> None:
    with two_daemons(tmp_path, f"sqlite:///{tmp_path}/shared.db", [endpoint("chat", vllm.url)]) as (leader, standby):
        stop_the_leader(leader, standby, how)
        at = time.time()
        standby.until(lambda: (_newest(standby, "chat") or 0) > at, "the second reads")
        assert standby.stop(WITHIN_S) == 0


def test_a_machine_that_stands_still_changes_no_leader(tmp_path: Path, vllm: Served) -> None:
    with two_daemons(tmp_path, f"sqlite:///{tmp_path}/shared.db", [endpoint("chat", vllm.url)]) as (leader, standby):
        stall_both(leader, standby, LEASE_S + 2)


# -- systemd, traces, logs ---------------------------------------------------------------------------------------------


@contextmanager
def _systemd() -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """Where systemd listens, and what it tells the daemon; it wants to hear from it every second."""
    address = f"/tmp/flyball-test-{os.getpid()}.sock"  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(60)
        try:
            yield listening, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}
        finally:
            Path(address).unlink()


def test_systemd_is_told(tmp_path: Path, vllm: Served) -> None:
    with (
        _systemd() as (listening, env),
        running(write_settings(tmp_path, [endpoint("chat", vllm.url)]), env=env) as daemon,
    ):
        assert _hears(listening, "READY=1") == ["READY=1", "STATUS=watching 1 endpoints"]
        _hears(listening, "WATCHDOG=1")
        _hears(listening, "WATCHDOG=1")
        daemon.signal(signal.SIGHUP)
        assert re.fullmatch(r"MONOTONIC_USEC=\d+", _hears(listening, "RELOADING=1")[1])
        _hears(listening, "READY=1")
        daemon.signal(signal.SIGTERM)
        _hears(listening, "STOPPING=1")
        assert daemon.process.wait(WITHIN_S) == 0


def test_the_watchdog_is_fed_by_a_living_process_whatever_its_peers_do(tmp_path: Path) -> None:
    absent = f"http://127.0.0.1:{free_port()}"
    with serve(hanging()) as stuck, _systemd() as (listening, env):
        config = write_settings(
            tmp_path,
            [endpoint("stuck", stuck.url), endpoint("absent", absent)],
            collect={"interval_s": 0.5, "window_s": 1, "timeout_s": 60},
        )
        with running(config, env=env) as daemon:
            daemon.until(lambda: stuck.requests and daemon.lines("read_failed"), "one hangs and one is not there")
            with _write_lock(tmp_path):
                _drain(listening)
                for _ in range(10):
                    _hears(listening, "WATCHDOG=1")
            daemon.signal(signal.SIGSTOP)
            process = psutil.Process(daemon.process.pid)
            daemon.until(lambda: process.status() == psutil.STATUS_STOPPED, "it stands still")
            _drain(listening)
            listening.settimeout(2)
            with pytest.raises(TimeoutError):  # one that does not live is not taken for one that does
                listening.recv(4096)
            listening.settimeout(60)
            daemon.signal(signal.SIGCONT)
            _hears(listening, "WATCHDOG=1")
            assert daemon.stop(WITHIN_S) == 0


@contextmanager
def _write_lock(folder: Path) -> Iterator[None]:
    """Held by another process, as far as the daemon can tell."""
    other = sqlite3.connect(folder / "flyball.db", isolation_level=None, timeout=60)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
    finally:
        other.close()


def _drain(listening: socket.socket) -> None:
    """Until nothing that was sent before is left to hear."""
    listening.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            listening.recv(4096)
    listening.settimeout(60)


def _hears(listening: socket.socket, state: str) -> list[str]:
    """The next message that holds this state, as lines."""
    while True:
        lines = listening.recv(4096).decode().splitlines()
        if state in lines:
            return lines


def test_traces_of_a_cycle_arrive(tmp_path: Path, vllm: Served) -> None:
    with serve(answering(b"", kind="application/x-protobuf")) as receiver:
        config = write_settings(tmp_path, [endpoint("chat", vllm.url)], otlp={"endpoint": receiver.url})
        with running(config) as daemon:
            daemon.until(lambda: {"collect", "decide", "analyze"} <= set(_spans(receiver)), "spans arrive")
            assert daemon.stop(WITHIN_S) == 0
        assert {r.path for r in receiver.requests} == {"/v1/traces"}
        spans = _spans(receiver)
        inner = spans["analyze"]
        assert {a.key: a.value.string_value for a in inner.attributes}["flyball.endpoint"] == "chat"
        assert inner.parent_span_id in {s.span_id for s in _all_spans(receiver) if s.name == "decide"}


def _all_spans(receiver: Served) -> list[Any]:
    found = []
    for request in list(receiver.requests):
        for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert names["service.name"] == "flyball"
            found += [span for scope in resource.scope_spans for span in scope.spans]
    return found


def _spans(receiver: Served) -> dict[str, Any]:
    return {span.name: span for span in _all_spans(receiver)}


def _of(endpoint: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Endpoints are analyzed side by side, so that any of them may be the first."""
    return [line for line in lines if line["endpoint"] == endpoint]


def test_each_line_of_the_log_says_which_endpoint_and_cycle(tmp_path: Path, vllm: Served) -> None:
    with serve(answering("no", status="500 Internal Server Error")) as bad:
        config = write_settings(tmp_path, [endpoint("chat", vllm.url), endpoint("broken", bad.url)])
        with running(config) as daemon:
            daemon.until(lambda: _of("chat", daemon.lines("analyzed")) and daemon.lines("read_failed"), "both are said")
            analyzed, failed = _of("chat", daemon.lines("analyzed"))[0], daemon.lines("read_failed")[0]
            assert analyzed["loop"] in ("first", "decide")
            assert (analyzed["endpoint"], analyzed["level"]) == ("chat", "info")
            assert (failed["loop"], failed["endpoint"], failed["kind"]) == ("collect", "broken", "http_5xx")
            assert analyzed["cycle"] >= 1
            assert failed["cycle"] >= 1
            assert daemon.stop(WITHIN_S) == 0
            assert all({"event", "level", "timestamp"} <= line.keys() for line in daemon.lines())
