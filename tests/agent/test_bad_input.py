"""What comes from outside may be anything: each bad endpoint ends in a counted, visible error of its own, and the good one goes on.

The governor is the real one, on the wall clock, and so are the servers; one test does it all at once in the daemon's process.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent import views
from agent.clock import WallClock
from agent.governor import Governor
from agent.settings import Settings
from agent.store import Store, windows
from collectors.http import Http
from collectors.window import Window
from tests.actuators.support import free_port
from tests.agent.daemons import running, write_settings
from tests.collectors.pages import v0_9
from tests.collectors.servers import Handler, Request, Served, answering, certificate, dated, head_of, serve

pytestmark = pytest.mark.timeout(300)

INTERVAL_S, WINDOW_S, WATCHED_S = 0.2, 1.0, 5.0
MIB = 2**20


@dataclass(frozen=True)
class Bad:
    """A server that misbehaves, and the class under which its error is counted."""

    kind: str
    handler: Callable[[], Handler] | None = None
    """None: nobody listens."""
    tls: bool = False


def hangs() -> Handler:
    async def handler(_request: Request, _writer: Any) -> None:
        await asyncio.sleep(30)

    return handler


def half() -> Handler:
    """Promises the whole page, and breaks off in the middle."""

    async def handler(_request: Request, writer: Any) -> None:
        page = v0_9().encode()
        writer.write(head_of(length=len(page)) + page[: len(page) // 2])
        await writer.drain()
        writer.transport.abort()

    return handler


def endless_labels() -> Handler:
    """A million label sets, sent as fast as they are taken."""

    async def handler(_request: Request, writer: Any) -> None:
        writer.write(head_of())
        for start in range(0, 1_000_000, 1000):
            lines = (
                f'vllm:num_requests_running{{engine="{n}",model_name="m"}} 1\n' for n in range(start, start + 1000)
            )
            writer.write("".join(lines).encode())
            await writer.drain()

    return handler


def endless_series_in_bounds() -> Handler:
    """As many label sets as fit into the largest body that is read."""
    page = "".join(f'vllm:num_requests_running{{engine="{n}",model_name="m"}} 1\n' for n in range(120_000))
    return answering(page)


def an_hour_off() -> Handler:
    return answering(v0_9(), date=dated(time.time() + 3600))


def round_in_circles() -> Handler:
    return answering("", status="302 Found", location="/metrics")


def negative() -> Handler:
    return answering(re.sub(r"(generation_tokens_total\{[^}]*\}) 400\.0", r"\1 -400.0", v0_9()))


BAD = {
    "down": Bad("down"),
    "slow": Bad("timeout", hangs),
    "HTML": Bad("not_metrics", lambda: answering("<html><body>It works!</body></html>", kind="text/html")),
    "half a response": Bad("truncated", half),
    "negative counters": Bad("invalid_value", negative),
    "a million label sets": Bad("too_large", endless_labels),
    "too many series": Bad("too_large", endless_series_in_bounds),
    "a clock an hour off": Bad("clock_skew", an_hour_off),
    "wrong TLS": Bad("tls", lambda: answering(v0_9()), tls=True),
    "401": Bad("http_401", lambda: answering("who are you?", status="401 Unauthorized")),
    "a redirect loop": Bad("redirect", round_in_circles),
}


@contextmanager
def bad_server(bad: Bad, folder: Path) -> Iterator[str]:
    """Its address."""
    if bad.handler is None:
        yield f"http://127.0.0.1:{free_port()}"
        return
    with ExitStack() as stack:
        tls = stack.enter_context(certificate(folder))[0] if bad.tls else None
        yield stack.enter_context(serve(bad.handler(), tls)).url


@pytest.fixture
def good() -> Iterator[Served]:
    with serve(answering(v0_9())) as served:
        yield served


def endpoint(name: str, url: str) -> dict[str, Any]:
    return {"name": name, "url": url, "objective": {"ttft_p95_s": 1.0}, "shape": {"replicas": 1}}


class Watch:
    """A governor that collects for a while beside a store of its own."""

    def __init__(self, folder: Path, endpoints: list[dict[str, Any]], seconds: float) -> None:
        collect = {"interval_s": INTERVAL_S, "window_s": WINDOW_S, "timeout_s": 0.8, "max_backoff_s": 0.8}
        self.settings = Settings.model_validate(
            {"endpoints": endpoints, "state_dir": folder, "collect": collect, "decide": {"interval_s": 60}}
        )
        self.store = Store(f"sqlite:///{folder}/flyball.db")
        self.store.upgrade()
        self.metrics = ""
        self.begun = self.ended = 0.0
        asyncio.run(self._run(seconds))

    async def _run(self, seconds: float) -> None:
        clock = WallClock()
        http = Http()
        governor = Governor(self.settings, self.store, clock, holder="test", http=http)
        await governor.take_lead()
        self.begun = clock.now()
        stop = asyncio.Event()
        collecting = asyncio.create_task(next(loop for loop in governor.loops if loop.name == "collect").run(stop))
        await asyncio.sleep(seconds)
        self.ended = clock.now()
        stop.set()
        await collecting
        await governor.close()
        await http.aclose()
        self.metrics = governor.metrics.text().decode()

    def windows(self, name: str) -> list[Window]:
        """Those that lie well within the time of watching, in order."""
        with self.store.read() as db:
            return windows.load(db, name, "vllm", self.begun + WINDOW_S, self.ended - WINDOW_S, WINDOW_S)

    def counted(self, name: str, kind: str) -> float:
        found = re.search(
            rf'flyball_read_errors_total\{{endpoint="{name}",kind="{kind}",source="vllm"\}} ([0-9.]+)', self.metrics
        )
        return float(found[1]) if found else 0.0


@pytest.mark.parametrize("what", BAD)
def test_a_bad_endpoint_stays_alone_with_its_error(what: str, tmp_path: Path, good: Served) -> None:
    bad = BAD[what]
    with bad_server(bad, tmp_path) as url:
        watch = Watch(tmp_path, [endpoint("good", good.url), endpoint("bad", url)], seconds=WATCHED_S)
    try:
        tries = watch.counted("bad", bad.kind)
        assert tries >= 2, f"counted: {re.findall('flyball_read_errors_total.*', watch.metrics)}"
        assert tries < WATCHED_S / INTERVAL_S / 2, "it is asked less and less often"
        status = views.status(watch.store, watch.settings, 0.0)
        assert [(s["endpoint"], s["source"]) for s in status["sources_in_trouble"]] == [("bad", "vllm")]
        assert status["sources_in_trouble"][0]["last_error"].startswith(f"{bad.kind}: ")
        gaps = watch.windows("bad")
        assert gaps, "a gap is written down"
        assert {(w.coverage, w.count("requests")) for w in gaps} == {(0.0, None)}
        assert {kind for w in gaps for kind in w.errors} == {bad.kind}

        seen = watch.windows("good")
        starts = [w.start for w in seen]
        assert starts == [starts[0] + n * WINDOW_S for n in range(len(starts))]
        assert len(starts) >= 2
        assert all(w.coverage == pytest.approx(1.0) for w in seen), [w.coverage for w in seen]
        assert 'flyball_read_errors_total{endpoint="good"' not in watch.metrics
    finally:
        watch.store.close()


def test_nan_is_unknown_and_not_zero(tmp_path: Path, good: Served) -> None:
    page = re.sub(r"(request_success_total\{[^}]*\}) [0-9.]+", r"\1 NaN", v0_9())
    page = re.sub(r"(num_requests_waiting\{[^}]*\}) [0-9.]+", r"\1 NaN", page)
    with serve(answering(page)) as served:
        watch = Watch(tmp_path, [endpoint("good", good.url), endpoint("bad", served.url)], seconds=WATCHED_S)
    try:
        bad, seen = watch.windows("bad"), watch.windows("good")
        assert bad
        assert seen
        assert {w.count("requests") for w in bad} == {None}
        assert all("waiting" not in w.gauges and "running" in w.gauges for w in bad)
        assert {w.count("requests") for w in seen} == {0.0}
    finally:
        watch.store.close()


def test_the_daemon_bears_all_of_it_at_once(tmp_path: Path, good: Served) -> None:
    """Every bad endpoint beside a good one: the process goes on, answers, and its memory stays bounded."""
    with ExitStack() as stack:
        urls = {}
        for i, (what, bad) in enumerate(BAD.items()):
            folder = tmp_path / str(i)
            folder.mkdir()
            urls[f"bad-{i}"] = stack.enter_context(bad_server(bad, folder)), what
        endpoints = [endpoint("good", good.url), *(endpoint(name, url) for name, (url, _) in urls.items())]
        collect = {"interval_s": 0.5, "window_s": 1, "timeout_s": 3, "max_backoff_s": 1}
        with running(write_settings(tmp_path, endpoints, collect=collect)) as daemon:
            daemon.ready()

            def failures() -> dict[str, int]:
                found = daemon.json("/index.json")["endpoints"]
                return {e["name"]: s["failures"] for e in found for s in e["sources"]}

            def each(least: int) -> bool:
                counted = failures()
                return all(counted.get(name, 0) >= least for name in urls)

            daemon.until(lambda: each(2), "each bad endpoint has failed a few times")
            process = psutil.Process(daemon.process.pid)
            before = process.memory_info().rss
            daemon.until(
                lambda: each(6),
                "each bad endpoint has failed often",
            )
            grown = process.memory_info().rss - before
            assert grown < 64 * MIB, f"{grown / MIB:.0f} MiB more after four more rounds"
            assert failures()["good"] == 0
            assert daemon.get("/healthz")[0] == 200
            status = daemon.json("/status.json")
            assert {s["endpoint"] for s in status["sources_in_trouble"]} == set(urls)
            page = daemon.get("/status")[1]
            assert all(name in page for name in urls)
            assert not [line for line in daemon.lines() if line["event"] == "cycle_failed"]
            assert daemon.stop() == 0
