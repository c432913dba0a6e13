"""What comes from outside may be anything: each bad endpoint ends in a counted, visible error of its own, and the good one goes on.

The governor is the real one, on the wall clock, and so are the servers; one test does it all at once in the daemon's process.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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

INTERVAL_S, WINDOW_S, LIMIT_S = 0.2, 0.5, 60.0
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


@contextmanager
def bad_servers(names: Iterable[str], folder: Path) -> Iterator[dict[str, str]]:
    """Their addresses, by name."""
    with ExitStack() as stack:
        urls = {}
        for number, name in enumerate(names):
            own = folder / str(number)
            own.mkdir()
            urls[name] = stack.enter_context(bad_server(BAD[name], own))
        yield urls


@pytest.fixture
def good() -> Iterator[Served]:
    with serve(answering(v0_9())) as served:
        yield served


def slug(what: str) -> str:
    """The name of the endpoint that misbehaves like this."""
    return what.lower().replace(" ", "-")


def endpoint(name: str, url: str) -> dict[str, Any]:
    return {"name": name, "url": url, "objective": {"ttft_p95_s": 1.0}, "shape": {"replicas": 1}}


class Watch:
    """A governor that collects beside a store of its own, until each endpoint has two windows and each bad one failed twice, once in them."""

    def __init__(self, folder: Path, good: str, bad: Mapping[str, str]) -> None:
        """``bad``: the addresses of those in ``BAD``, and of others that answer."""
        endpoints = [endpoint("good", good), *(endpoint(slug(name), url) for name, url in bad.items())]
        collect = {"interval_s": INTERVAL_S, "window_s": WINDOW_S, "timeout_s": 0.8, "max_backoff_s": 0.8}
        self.settings = Settings.model_validate(
            {"endpoints": endpoints, "state_dir": folder, "collect": collect, "decide": {"interval_s": 60}}
        )
        self.bad = {name: BAD[name].kind for name in bad if name in BAD}
        self.store = Store(f"sqlite:///{folder}/flyball.db")
        self.store.upgrade()
        self.metrics = ""
        self.begun = self.ended = 0.0
        asyncio.run(self._run())

    async def _run(self) -> None:
        clock = WallClock()
        http = Http()
        governor = Governor(self.settings, self.store, clock, holder="test", http=http)
        await governor.take_lead()
        self.begun = clock.now()
        stop = asyncio.Event()
        collecting = asyncio.create_task(next(loop for loop in governor.loops if loop.name == "collect").run(stop))
        while not self._seen() and self.ended < self.begun + LIMIT_S:
            await asyncio.sleep(INTERVAL_S)
            self.ended = clock.now()
            self.metrics = governor.metrics.text().decode()
        stop.set()
        await collecting
        await governor.close()
        await http.aclose()

    def _seen(self) -> bool:
        windows = all(len(self.windows(e.name)) >= 2 for e in self.settings.endpoints)
        failed = all(self.counted(name, kind) >= 2 for name, kind in self.bad.items())
        return windows and failed and all(any(w.errors for w in self.windows(name)) for name in self.bad)

    def windows(self, name: str) -> list[Window]:
        """Those that lie well within the time of watching, in order."""
        with self.store.read() as db:
            since, until = self.begun + WINDOW_S, self.ended - WINDOW_S
            return windows.load(db, slug(name), "vllm", since, until, WINDOW_S)

    def counted(self, name: str, kind: str) -> float:
        label = slug(name)
        found = re.search(
            rf'flyball_read_errors_total\{{endpoint="{label}",kind="{kind}",source="vllm"\}} ([0-9.]+)', self.metrics
        )
        return float(found[1]) if found else 0.0

    def fails_alone(self, name: str) -> None:
        """It fails for its own reason, less and less often, and with a gap in each window."""
        kind, label = self.bad[name], slug(name)
        tries = self.counted(name, kind)
        assert tries >= 2, f"counted: {re.findall('flyball_read_errors_total.*', self.metrics)}"
        assert tries < (self.ended - self.begun) / INTERVAL_S / 2, "it is asked less and less often"
        status = views.status(self.store, self.settings, 0.0)
        (trouble,) = [s for s in status["sources_in_trouble"] if s["endpoint"] == label]
        assert trouble["source"] == "vllm"
        assert trouble["last_error"].startswith(f"{kind}: ")
        gaps = self.windows(name)
        assert gaps, "a gap is written down"
        assert {(w.coverage, w.count("requests")) for w in gaps} == {(0.0, None)}
        assert {kind for w in gaps for kind in w.errors} == {kind}

    def goes_on(self) -> None:
        """The good one is read on, without a gap and without an error, and is in nobody's list of troubles."""
        seen = self.windows("good")
        starts = [w.start for w in seen]
        assert starts == [starts[0] + n * WINDOW_S for n in range(len(starts))]
        assert len(starts) >= 2
        # The last one ends while the other's answer is still parsed: on a busy machine its own last reading may come after it.
        assert all(w.coverage == pytest.approx(1.0) for w in seen[:-1]), [w.coverage for w in seen]
        assert seen[-1].coverage > 0.5
        assert 'flyball_read_errors_total{endpoint="good"' not in self.metrics
        troubled = {s["endpoint"] for s in views.status(self.store, self.settings, 0.0)["sources_in_trouble"]}
        assert troubled == {slug(name) for name in self.bad}


#: These cost a whole core: each is watched beside the good one alone.
HEAVY = ("a million label sets", "too many series")
LIGHT = tuple(name for name in BAD if name not in HEAVY)
UNKNOWN = "nan"


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """All that cost little, and one that says NaN, beside the good one."""
    folder = tmp_path_factory.mktemp("together")
    page = re.sub(r"(request_success_total\{[^}]*\}) [0-9.]+", r"\1 NaN", v0_9())
    page = re.sub(r"(num_requests_waiting\{[^}]*\}) [0-9.]+", r"\1 NaN", page)
    with serve(answering(v0_9())) as good, serve(answering(page)) as unknown, bad_servers(LIGHT, folder) as urls:
        watch = Watch(folder, good.url, {**urls, UNKNOWN: unknown.url})
    yield watch
    watch.store.close()


@pytest.mark.parametrize("what", LIGHT)
def test_a_bad_endpoint_stays_alone_with_its_error(what: str, together: Watch) -> None:
    together.fails_alone(what)


def test_the_good_one_goes_on(together: Watch) -> None:
    together.goes_on()


def test_nan_is_unknown_and_not_zero(together: Watch) -> None:
    seen = together.windows(UNKNOWN)
    assert seen
    assert {w.count("requests") for w in seen} == {None}
    assert all("waiting" not in w.gauges and "running" in w.gauges for w in seen)
    assert {w.count("requests") for w in together.windows("good")} == {0.0}


@pytest.mark.parametrize("what", HEAVY)
def test_a_huge_answer_costs_the_good_one_nothing(what: str, tmp_path: Path, good: Served) -> None:
    with bad_servers([what], tmp_path) as urls:
        watch = Watch(tmp_path, good.url, urls)
    try:
        watch.fails_alone(what)
        watch.goes_on()
    finally:
        watch.store.close()


def test_the_daemon_bears_all_of_it_at_once(tmp_path: Path, good: Served) -> None:
    """Every bad endpoint beside a good one: the process goes on, answers, and its memory stays bounded."""
    with bad_servers(BAD, tmp_path) as found:
        urls = {f"bad-{i}": url for i, url in enumerate(found.values())}
        endpoints = [endpoint("good", good.url), *(endpoint(name, url) for name, url in urls.items())]
        collect = {"interval_s": 0.5, "window_s": 1, "timeout_s": 1.5, "max_backoff_s": 0.5}
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
